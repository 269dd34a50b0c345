// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// All linear layers of one forward pass, M rows: how near to the read-bandwidth floor, and how free
// are more rows. Default: a 300 M parameter Llama (hidden 1024, 16 layers, vocabulary 32000).
//   bench_linear [--threads 0] [--isa ""] [--dtype bf16|f32] [--rounds 9] [--model 300m|tiny]
#include <cstdio>
#include <memory>
#include <random>

#include "backend/backend.hpp"
#include "cpu/isa.hpp"
#include "harness.hpp"

namespace smartspec {
namespace {

struct Shape {
  int in = 0;
  int out = 0;
};

std::vector<Shape> model_shapes(const std::string& name) {
  const bool tiny = name == "tiny";
  const int layers = tiny ? 8 : 16;
  const int hidden = tiny ? 384 : 1024;
  const int inner = tiny ? 1024 : 4096;
  const int qkv = tiny ? 384 * 2 : 2048;
  std::vector<Shape> shapes;
  for (int l = 0; l < layers; ++l) {
    shapes.push_back({hidden, qkv});
    shapes.push_back({hidden, hidden});
    shapes.push_back({hidden, 2 * inner});
    shapes.push_back({inner, hidden});
  }
  shapes.push_back({hidden, tiny ? 4096 : 32000});
  return shapes;
}

int run(int argc, char** argv) {
  const int threads = bench::int_option(argc, argv, "--threads", 0);
  const auto backend = cpu::make_cpu_backend(threads, bench::option(argc, argv, "--isa", ""));
  const bool bf16 = bench::option(argc, argv, "--dtype", "bf16") == "bf16";
  const DType dtype = bf16 ? DType::kBFloat16 : DType::kFloat32;
  const std::string model = bench::option(argc, argv, "--model", "300m");
  std::vector<PackedLinear> layers;
  double bytes = 0.0;
  double flops = 0.0;
  std::minstd_rand random(1);
  for (const Shape& shape : model_shapes(model)) {
    std::vector<float> weights(static_cast<std::size_t>(shape.in) *
                               static_cast<std::size_t>(shape.out));
    for (float& w : weights) w = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
    TensorView view;
    view.data = weights.data();
    view.rank = 2;
    view.shape = {shape.out, shape.in, 0, 0};
    layers.push_back(backend->pack_linear(std::span(&view, 1), dtype));
    bytes += static_cast<double>(view.num_elements()) * static_cast<double>(size_of(dtype));
    flops += 2.0 * static_cast<double>(view.num_elements());
  }
  const std::vector<int> row_counts = {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64};
  std::vector<float> in(64 * 8192, 0.5F);
  std::vector<float> out(64 * 32000);
  bench::ReadBandwidth bandwidth(backend->num_threads());
  std::vector<std::function<void()>> cases = {[&] { bandwidth.run(); }};
  for (const int rows : row_counts) {
    cases.emplace_back([&, rows] {
      for (const PackedLinear& layer : layers) {
        LinearParams p;
        p.in = in.data();
        p.weight = &layer;
        p.out = out.data();
        p.num_rows = rows;
        p.in_stride = layer.in_features;
        p.out_stride = layer.out_features;
        backend->linear(p);
      }
    });
  }
  const auto times =
      bench::interleave(cases, bench::int_option(argc, argv, "--rounds", model == "tiny" ? 99 : 9));
  const double floor = bandwidth.bytes() / times[0].median;
  std::printf(
      "%s, %d threads, %s, model %s: %.1f MB per pass; read bandwidth %.1f GB/s "
      "(best %.1f)\n",
      std::string(backend->isa_name()).c_str(), backend->num_threads(), bf16 ? "bf16" : "f32",
      model.c_str(), bytes / 1e6, floor / 1e9, bandwidth.bytes() / times[0].best / 1e9);
  std::printf("%6s %10s %10s %8s %10s %8s %9s\n", "rows", "median ms", "best ms", "GB/s",
              "of floor", "T/T(1)", "GFLOP/s");
  for (std::size_t i = 0; i < row_counts.size(); ++i) {
    const bench::Times& t = times[i + 1];
    std::printf("%6d %10.3f %10.3f %8.1f %9.1f%% %8.2f %9.0f\n", row_counts[i], t.median * 1e3,
                t.best * 1e3, bytes / t.median / 1e9, 100.0 * bytes / t.median / floor,
                t.median / times[1].median, flops * row_counts[i] / t.median / 1e9);
  }
  return 0;
}

}  // namespace
}  // namespace smartspec

int main(int argc, char** argv) { return smartspec::run(argc, argv); }
