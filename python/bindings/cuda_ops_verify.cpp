// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// smartspec_core.cuda: verification of trees, and the module itself.
#include <algorithm>
#include <deque>

#include "cuda_ops.hpp"

namespace smartspec::python {

namespace {

using cuda::VerifyRule;

VerifyRule rule_of(const std::string& word) {
  if (word == "target") return VerifyRule::kTarget;
  if (word == "token") return VerifyRule::kToken;
  if (word == "block") return VerifyRule::kBlock;
  if (word == "traversal") return VerifyRule::kTraversal;
  throw std::invalid_argument("rule is '" + word + "'; allowed: target, token, block, traversal");
}

/// Reads keyword arguments one by one into the fields of a struct and keeps their memory alive.
class VerifyArguments {
 public:
  VerifyArguments(const py::kwargs& given, std::uintptr_t stream)
      : given_(given), arguments_(stream) {}

  const Tensor& take(const TensorSpec& spec) {
    if (!given_.contains(spec.name) || given_[spec.name].is_none()) {
      throw py::type_error(std::string("verify: missing argument ") + spec.name);
    }
    return optional(spec);
  }
  /// Null data for None and for what was not given.
  const Tensor& optional(const TensorSpec& spec) {
    names_.emplace_back(spec.name);
    return tensors_.emplace_back(
        given_.contains(spec.name) ? arguments_.take_optional(given_[spec.name], spec) : Tensor());
  }
  void finish() const {
    for (const auto& [key, value] : given_) {
      const auto name = key.cast<std::string>();
      if (std::find(names_.begin(), names_.end(), name) == names_.end()) {
        throw py::type_error("verify: no argument is called " + name);
      }
    }
    arguments_.finish();
  }
  TensorArguments& arguments() noexcept { return arguments_; }

 private:
  const py::kwargs& given_;
  TensorArguments arguments_;
  std::deque<Tensor> tensors_;  // references to elements stay valid
  std::vector<std::string> names_;
};

/// Returns the number of rows of logits.
std::int64_t read_trees(VerifyArguments& in, cuda::Verify& out) {
  const Tensor& logits = in.take({.name = "logits",
                                  .dtypes = {"float32", "bfloat16", "float16"},
                                  .shape = {-1, -1},
                                  .layout = TensorSpec::Layout::kRows});
  out.logits = logits.data();
  out.dtype = dtype_of(logits.dtype(), "logits");
  out.vocab_size = static_cast<std::int32_t>(logits.extent(1));
  out.logits_stride = logits.stride(0);
  const Tensor& offsets = in.take({.name = "logits_offsets", .dtypes = {"int32"}, .shape = {-1}});
  const std::int64_t sequences = offsets.extent(0);
  out.num_sequences = static_cast<std::int32_t>(sequences);
  out.logits_offsets = offsets.data<std::int32_t>();
  out.node_offsets =
      in.take({.name = "node_offsets", .dtypes = {"int32"}, .shape = {sequences + 1}})
          .data<std::int32_t>();
  const Tensor& tokens = in.take({.name = "node_tokens", .dtypes = {"int32"}, .shape = {-1}});
  out.node_tokens = tokens.data<TokenId>();
  out.parents = in.take({.name = "parents", .dtypes = {"int32"}, .shape = {tokens.extent(0)}})
                    .data<std::int32_t>();
  return logits.extent(0);
}

void read_sampling(VerifyArguments& in, cuda::Verify& out) {
  const std::int64_t sequences = out.num_sequences;
  const auto floats = [&](const char* name) {
    return in.optional({.name = name, .dtypes = {"float32"}, .shape = {sequences}}).data<float>();
  };
  out.temperature = floats("temperature");
  out.top_k = in.optional({.name = "top_k", .dtypes = {"int32"}, .shape = {sequences}})
                  .data<std::int32_t>();
  out.top_p = floats("top_p");
  out.min_p = floats("min_p");
  out.seeds = in.take({.name = "seeds", .dtypes = {"int64", "uint64"}, .shape = {sequences}})
                  .data<std::uint64_t>();
  out.positions = in.take({.name = "positions", .dtypes = {"int64"}, .shape = {sequences}})
                      .data<std::int64_t>();
  out.repetition_penalty = floats("repetition_penalty");
  out.frequency_penalty = floats("frequency_penalty");
  out.presence_penalty = floats("presence_penalty");
  out.count_offsets =
      in.optional({.name = "count_offsets", .dtypes = {"int32"}, .shape = {sequences + 1}})
          .data<std::int32_t>();
  const Tensor& counted = in.optional({.name = "count_tokens", .dtypes = {"int32"}, .shape = {-1}});
  const std::int64_t entries = counted.empty() ? -1 : counted.extent(0);
  out.count_tokens = counted.data<TokenId>();
  out.output_counts =
      in.optional({.name = "output_counts", .dtypes = {"int32"}, .shape = {entries}})
          .data<std::int32_t>();
  out.count_bias =
      in.optional({.name = "count_bias", .dtypes = {"float32"}, .shape = {entries}}).data<float>();
}

void read_masks_and_drafts(VerifyArguments& in, std::int64_t num_logits, cuda::Verify& out) {
  const std::int64_t vocab_size = out.vocab_size;
  const Tensor& masks = in.optional({.name = "masks",
                                     .dtypes = {"int32", "uint32"},
                                     .shape = {-1, (vocab_size + 31) / 32},
                                     .layout = TensorSpec::Layout::kRows});
  out.masks = masks.data<std::uint32_t>();
  out.mask_stride = masks.empty() ? 0 : masks.stride(0);
  const auto rows = [&](const char* name) {
    return in.optional({.name = name, .dtypes = {"int32"}, .shape = {num_logits}})
        .data<std::int32_t>();
  };
  out.mask_rows = rows("mask_rows");
  out.draft_probs =
      in.optional({.name = "draft_probs", .dtypes = {"float32"}, .shape = {-1, vocab_size}})
          .data<float>();
  out.draft_rows = rows("draft_rows");
}

void read_results(VerifyArguments& in, cuda::Verify& out) {
  const std::int64_t sequences = out.num_sequences;
  const auto per_sequence = [&](const char* name) {
    return in.take({.name = name, .dtypes = {"int32"}, .shape = {sequences}, .written = true})
        .data<std::int32_t>();
  };
  out.num_accepted = per_sequence("num_accepted");
  out.status = per_sequence("status");
  const Tensor& path =
      in.take({.name = "path", .dtypes = {"int32"}, .shape = {sequences, -1}, .written = true});
  const std::int64_t width = path.extent(1);
  out.path = path.data<std::int32_t>();
  out.path_stride = width;
  out.tokens =
      in.take({.name = "tokens", .dtypes = {"int32"}, .shape = {sequences, width}, .written = true})
          .data<TokenId>();
  out.logprobs = in.optional({.name = "logprobs",
                              .dtypes = {"float32"},
                              .shape = {sequences, width},
                              .written = true})
                     .data<float>();
}

void verify(const py::object& workspace, std::uintptr_t stream, const std::string& rule,
            const py::KWArgs<py::object>& given) {
  VerifyArguments in(given, stream);
  cuda::Verify out;
  out.rule = rule_of(rule);
  const std::int64_t num_logits = read_trees(in, out);
  read_sampling(in, out);
  read_masks_and_drafts(in, num_logits, out);
  read_results(in, out);
  const Tensor scratch = take_workspace(in.arguments(), workspace);
  in.finish();
  const py::gil_scoped_release release;
  cuda::verify(out, scratch.data(), scratch.num_bytes(), stream_of(stream));
}

constexpr const char* kVerifyDoc = R"(Accepts a path through each tree and draws the token after it.

Logits [num_logits, vocab_size] may be strided by row; seeds are int64 or uint64, positions int64,
masks int32 or uint32 [num_masks, ceil(vocab_size / 32)], draft_probs float32 [*, vocab_size]; of
the rest int32 are all ids, offsets and counts and float32 all parameters. Results: num_accepted
and status [num_sequences], path and tokens [num_sequences, width], width being at least the
longest path + 1.)";

}  // namespace

void init_cuda_verify(py::module_& m) {
  using py::arg;
  m.def(
      "verify_workspace_bytes",
      [](const std::string& rule, std::int32_t max_sequences, std::int32_t max_nodes,
         std::int32_t vocab_size) {
        return cuda::verify_workspace_bytes(rule_of(rule), max_sequences, max_nodes, vocab_size);
      },
      py::kw_only(), arg("rule"), arg("max_sequences"), arg("max_nodes"), arg("vocab_size"),
      "Bytes of workspace of verify, uint8, zeroed once when it is allocated.");
  m.def("verify", &verify, py::kw_only(), arg("workspace"), arg("stream"), arg("rule") = "target",
        kVerifyDoc);
}

}  // namespace smartspec::python
