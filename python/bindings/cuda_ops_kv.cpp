// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// smartspec_core.cuda: the paged cache and what moves its tokens.
#include "cuda_ops.hpp"

namespace smartspec::python {

namespace {

using Layout = TensorSpec::Layout;

DType kv_dtype_of(const Tensor& k, const std::optional<std::string>& dtype) {
  const DType stored = dtype_of(k.dtype(), "k");
  if (!dtype) {
    if (stored == DType::kUInt8) {
      throw std::invalid_argument(
          "k has dtype uint8: name what the bytes are with kv_dtype; allowed: float8_e4m3fn, "
          "float8_e5m2");
    }
    return stored;
  }
  const DType wanted = dtype_of(*dtype, "kv_dtype");
  const bool is_float8 = wanted == DType::kFloat8E4M3 || wanted == DType::kFloat8E5M2;
  if (wanted != stored && !(is_float8 && stored == DType::kUInt8)) {
    throw std::invalid_argument("kv_dtype is " + *dtype + ", k has dtype " + k.dtype() +
                                "; allowed: the same, or a float8 for uint8");
  }
  return wanted;
}

std::unique_ptr<BoundPagedKv> make_paged_kv(const py::object& k, const py::object& v,
                                            const std::string& layout,
                                            const std::optional<std::string>& kv_dtype,
                                            const py::object& k_scale, const py::object& v_scale,
                                            std::uintptr_t stream) {
  if (layout != "NHD" && layout != "HND") {
    throw std::invalid_argument("layout is '" + layout + "'; allowed: NHD, HND");
  }
  const std::size_t token_axis = layout == "NHD" ? 1 : 2;
  const std::size_t head_axis = 3 - token_axis;
  TensorArguments arguments(stream);
  auto out = std::make_unique<BoundPagedKv>();
  out->k = arguments.take(k, {.name = "k",
                              .dtypes = {"float32", "bfloat16", "float16", "float8_e4m3fn",
                                         "float8_e5m2", "int8", "uint8"},
                              .shape = {-1, -1, -1, -1},
                              .layout = Layout::kInner,
                              .written = true});
  out->v = arguments.take(
      v, {.name = "v",
          .dtypes = {out->k.dtype()},
          .shape = {out->k.extent(0), out->k.extent(1), out->k.extent(2), out->k.extent(3)},
          .layout = Layout::kInner,
          .written = true});
  if (out->v.strides() != out->k.strides()) {
    throw std::invalid_argument("v has strides " + text_of(out->v.strides()) +
                                "; allowed: those of k, " + text_of(out->k.strides()));
  }
  const std::int64_t num_kv_heads = out->k.extent(head_axis);
  out->k_scale = arguments.take_optional(
      k_scale, {.name = "k_scale", .dtypes = {"float32"}, .shape = {num_kv_heads}});
  out->v_scale = arguments.take_optional(
      v_scale, {.name = "v_scale", .dtypes = {"float32"}, .shape = {num_kv_heads}});
  out->kv = {.k = out->k.data(),
             .v = out->v.data(),
             .dtype = kv_dtype_of(out->k, kv_dtype),
             .page_size = static_cast<std::int32_t>(out->k.extent(token_axis)),
             .num_kv_heads = static_cast<std::int32_t>(num_kv_heads),
             .head_dim = static_cast<std::int32_t>(out->k.extent(3)),
             .page_stride = out->k.stride(0),
             .token_stride = out->k.stride(token_axis),
             .head_stride = out->k.stride(head_axis),
             .k_scale = out->k_scale.data<float>(),
             .v_scale = out->v_scale.data<float>()};
  arguments.finish();
  return out;
}

void append_kv(const BoundPagedKv& kv, const py::object& k, const py::object& v,
               const py::object& slots, const py::object& q, const py::object& cos,
               const py::object& sin, const py::object& positions, std::uintptr_t stream) {
  if (cos.is_none() != sin.is_none() || cos.is_none() != positions.is_none()) {
    throw std::invalid_argument("cos, sin and positions: all of them, or none");
  }
  TensorArguments arguments(stream);
  arguments.add(kv.k);
  const std::int64_t heads = kv.kv.num_kv_heads;
  const std::int64_t dim = kv.kv.head_dim;
  const Tensor new_k = arguments.take(k, {.name = "k",
                                          .dtypes = {"float32", "bfloat16", "float16"},
                                          .shape = {-1, heads, dim},
                                          .layout = Layout::kRows});
  const std::int64_t rows = new_k.extent(0);
  const Tensor new_v = arguments.take(v, {.name = "v",
                                          .dtypes = {new_k.dtype()},
                                          .shape = {rows, heads, dim},
                                          .layout = Layout::kRows});
  const Tensor new_slots =
      arguments.take(slots, {.name = "slots", .dtypes = {"int32"}, .shape = {rows}});
  const Tensor queries = arguments.take_optional(q, {.name = "q",
                                                     .dtypes = {new_k.dtype()},
                                                     .shape = {rows, -1, dim},
                                                     .layout = Layout::kRows,
                                                     .written = true});
  const Tensor cosines =
      arguments.take_optional(cos, {.name = "cos", .dtypes = {"float32"}, .shape = {-1, dim / 2}});
  const Tensor sines =
      arguments.take_optional(sin, {.name = "sin",
                                    .dtypes = {"float32"},
                                    .shape = {cosines.empty() ? -1 : cosines.extent(0), dim / 2}});
  const Tensor places = arguments.take_optional(
      positions, {.name = "positions", .dtypes = {"int32"}, .shape = {rows}});
  arguments.finish();
  const cuda::AppendKv append = {
      .q = queries.data(),
      .k = new_k.data(),
      .v = new_v.data(),
      .dtype = dtype_of(new_k.dtype(), "k"),
      .q_stride = queries.empty() ? 0 : queries.stride(0),
      .k_stride = new_k.stride(0),
      .v_stride = new_v.stride(0),
      .cos = cosines.data<float>(),
      .sin = sines.data<float>(),
      .positions = places.data<std::int32_t>(),
      .slots = new_slots.data<SlotId>(),
      .kv = kv.kv,
      .num_rows = static_cast<std::int32_t>(rows),
      .num_heads = queries.empty() ? 0 : static_cast<std::int32_t>(queries.extent(1))};
  const py::gil_scoped_release release;
  cuda::append_kv(append, stream_of(stream));
}

std::vector<cuda::PagedKv> layers_of(const std::vector<const BoundPagedKv*>& layers,
                                     TensorArguments& arguments) {
  std::vector<cuda::PagedKv> out;
  for (const BoundPagedKv* layer : layers) {
    arguments.add(layer->k);
    out.push_back(layer->kv);
  }
  return out;
}

void move_kv(const std::vector<const BoundPagedKv*>& layers, const py::object& sources,
             const py::object& destinations, const py::object& group_offsets,
             std::uintptr_t stream) {
  TensorArguments arguments(stream);
  const std::vector<cuda::PagedKv> caches = layers_of(layers, arguments);
  const Tensor from =
      arguments.take(sources, {.name = "sources", .dtypes = {"int32"}, .shape = {-1}});
  const Tensor to = arguments.take(
      destinations, {.name = "destinations", .dtypes = {"int32"}, .shape = {from.extent(0)}});
  const Tensor groups = arguments.take_optional(
      group_offsets, {.name = "group_offsets", .dtypes = {"int32"}, .shape = {-1}});
  arguments.finish();
  const cuda::MoveKv moves = {
      .layers = caches.data(),
      .num_layers = static_cast<std::int32_t>(caches.size()),
      .sources = from.data<SlotId>(),
      .destinations = to.data<SlotId>(),
      .group_offsets = groups.data<std::int32_t>(),
      .num_moves = static_cast<std::int32_t>(from.extent(0)),
      .num_groups = groups.empty() ? 1 : static_cast<std::int32_t>(groups.extent(0)) - 1};
  const py::gil_scoped_release release;
  cuda::move_kv(moves, stream_of(stream));
}

void copy_pages(const std::vector<const BoundPagedKv*>& layers, const py::object& sources,
                const py::object& destinations, std::uintptr_t stream) {
  TensorArguments arguments(stream);
  const std::vector<cuda::PagedKv> caches = layers_of(layers, arguments);
  const Tensor from =
      arguments.take(sources, {.name = "sources", .dtypes = {"int32"}, .shape = {-1}});
  const Tensor to = arguments.take(
      destinations, {.name = "destinations", .dtypes = {"int32"}, .shape = {from.extent(0)}});
  arguments.finish();
  const cuda::CopyPages copy = {.layers = caches.data(),
                                .num_layers = static_cast<std::int32_t>(caches.size()),
                                .sources = from.data<BlockId>(),
                                .destinations = to.data<BlockId>(),
                                .num_pages = static_cast<std::int32_t>(from.extent(0))};
  const py::gil_scoped_release release;
  cuda::copy_pages(copy, stream_of(stream));
}

void swap_pages(const std::vector<const BoundPagedKv*>& layers, const py::object& pages,
                const py::object& host, bool to_host, std::uintptr_t stream) {
  TensorArguments arguments(stream);
  const std::vector<cuda::PagedKv> caches = layers_of(layers, arguments);
  const Tensor ids = arguments.take(pages, {.name = "pages", .dtypes = {"int32"}, .shape = {-1}});
  const Tensor memory(host, "host", stream);
  memory.check({.name = "host", .dtypes = {"uint8"}, .shape = {-1}, .written = to_host});
  arguments.finish();
  if (!memory.is_on_host()) {
    throw std::invalid_argument("host is on " + memory.device() + "; must be page-locked memory");
  }
  std::size_t needed = 0;
  for (const cuda::PagedKv& kv : caches) {
    needed += 2 * static_cast<std::size_t>(ids.extent(0)) * static_cast<std::size_t>(kv.page_size) *
              static_cast<std::size_t>(kv.num_kv_heads) * static_cast<std::size_t>(kv.head_dim) *
              size_of(kv.dtype);
  }
  if (memory.num_bytes() < needed) {
    throw std::invalid_argument("host has " + std::to_string(memory.num_bytes()) +
                                " bytes; allowed: at least " + std::to_string(needed));
  }
  const cuda::SwapPages swap = {.layers = caches.data(),
                                .num_layers = static_cast<std::int32_t>(caches.size()),
                                .pages = ids.data<BlockId>(),
                                .num_pages = static_cast<std::int32_t>(ids.extent(0)),
                                .host = memory.data(),
                                .to_host = to_host};
  const py::gil_scoped_release release;
  cuda::swap_pages(swap, stream_of(stream));
}

}  // namespace

void init_cuda_kv(py::module_& m) {
  using py::arg;
  py::class_<BoundPagedKv>(m, "PagedKv", py::module_local(),
                           "A paged cache of one layer: views of k and v, [num_pages, page_size, "
                           "num_kv_heads, head_dim] (NHD) or [num_pages, num_kv_heads, page_size, "
                           "head_dim] (HND), with any strides but the last.")
      .def(py::init(&make_paged_kv), py::kw_only(), arg("k"), arg("v"), arg("layout") = "NHD",
           arg("kv_dtype") = py::none(), arg("k_scale") = py::none(), arg("v_scale") = py::none(),
           arg("stream"))
      .def_property_readonly("dtype",
                             [](const BoundPagedKv& self) { return name_of(self.kv.dtype); })
      .def_property_readonly("page_size",
                             [](const BoundPagedKv& self) { return self.kv.page_size; })
      .def_property_readonly("num_kv_heads",
                             [](const BoundPagedKv& self) { return self.kv.num_kv_heads; })
      .def_property_readonly("head_dim", [](const BoundPagedKv& self) { return self.kv.head_dim; });
  m.def("append_kv", &append_kv, py::kw_only(), arg("kv"), arg("k"), arg("v"), arg("slots"),
        arg("q") = py::none(), arg("cos") = py::none(), arg("sin") = py::none(),
        arg("positions") = py::none(), arg("stream"),
        "Writes rows of k and v [num_rows, num_kv_heads, head_dim] to their slots [num_rows]; with "
        "cos and sin [max_position, head_dim / 2] rotates k on the way, and q in place.");
  m.def("move_kv", &move_kv, py::kw_only(), arg("layers"), arg("sources"), arg("destinations"),
        arg("group_offsets") = py::none(), arg("stream"),
        "Copies one token's K and V per move, in all layers. Moves of one group are in order.");
  m.def("copy_pages", &copy_pages, py::kw_only(), arg("layers"), arg("sources"),
        arg("destinations"), arg("stream"), "Copies whole pages, in all layers.");
  m.def("swap_pages", &swap_pages, py::kw_only(), arg("layers"), arg("pages"), arg("host"),
        arg("to_host"), arg("stream"),
        "Pages to or from page-locked host memory, uint8, layer by layer, K then V of each page.");
}

}  // namespace smartspec::python
