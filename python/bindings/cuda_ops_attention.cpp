// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// smartspec_core.cuda: the forest of a pass, and attention over it.
#include "cuda_ops.hpp"

namespace smartspec::python {

namespace {

using Layout = TensorSpec::Layout;

struct BoundForest {
  cuda::Forest forest;
  Tensor row_offsets;
  Tensor context_lens;
  Tensor num_causal;
  Tensor node_offsets;
  Tensor parents;
  Tensor block_table;
};

/// A forest with its plan in the workspace; tree_attention needs exactly this combination.
struct PreparedForest {
  std::shared_ptr<BoundForest> bound;
  cuda::AttentionPlanOptions options;
  cuda::ForestState state;
  Tensor workspace;
};

std::shared_ptr<BoundForest> make_forest(const py::object& row_offsets,
                                         const py::object& context_lens,
                                         const py::object& node_offsets, const py::object& parents,
                                         const py::object& block_table, std::int32_t num_rows,
                                         const py::object& num_causal, std::uintptr_t stream) {
  TensorArguments arguments(stream);
  auto out = std::make_shared<BoundForest>();
  out->context_lens =
      arguments.take(context_lens, {.name = "context_lens", .dtypes = {"int32"}, .shape = {-1}});
  const std::int64_t sequences = out->context_lens.extent(0);
  out->row_offsets = arguments.take(
      row_offsets, {.name = "row_offsets", .dtypes = {"int32"}, .shape = {sequences + 1}});
  out->num_causal = arguments.take_optional(
      num_causal, {.name = "num_causal", .dtypes = {"int32"}, .shape = {sequences}});
  out->node_offsets = arguments.take(
      node_offsets, {.name = "node_offsets", .dtypes = {"int32"}, .shape = {sequences + 1}});
  out->parents = arguments.take(parents, {.name = "parents", .dtypes = {"int32"}, .shape = {-1}});
  out->block_table = arguments.take(block_table, {.name = "block_table",
                                                  .dtypes = {"int32"},
                                                  .shape = {sequences, -1},
                                                  .layout = Layout::kRows});
  arguments.finish();
  out->forest = {.num_sequences = static_cast<std::int32_t>(sequences),
                 .num_rows = num_rows,
                 .num_nodes = static_cast<std::int32_t>(out->parents.extent(0)),
                 .row_offsets = out->row_offsets.data<std::int32_t>(),
                 .context_lens = out->context_lens.data<std::int32_t>(),
                 .num_causal = out->num_causal.data<std::int32_t>(),
                 .node_offsets = out->node_offsets.data<std::int32_t>(),
                 .parents = out->parents.data<std::int32_t>(),
                 .block_table = out->block_table.data<BlockId>(),
                 .block_table_stride = out->block_table.stride(0)};
  return out;
}

PreparedForest prepare_forest(const std::shared_ptr<BoundForest>& forest,
                              const cuda::AttentionPlanOptions& options,
                              const py::object& workspace, std::uintptr_t stream) {
  TensorArguments arguments(stream);
  arguments.add(forest->parents);
  PreparedForest out{.bound = forest, .options = options, .state = {}, .workspace = {}};
  out.workspace = take_workspace(arguments, workspace);
  arguments.finish();
  const py::gil_scoped_release release;
  out.state = cuda::prepare_forest(forest->forest, options, out.workspace.data(),
                                   out.workspace.num_bytes(), stream_of(stream));
  return out;
}

void tree_attention(const py::object& q, const py::object& out, const BoundPagedKv& kv,
                    const PreparedForest& forest, const py::object& lse, float scale,
                    float soft_cap, std::int32_t sliding_window, std::uintptr_t stream) {
  const std::int64_t rows = forest.bound->forest.num_rows;
  const std::int64_t heads = forest.options.num_heads;
  const std::int64_t dim = forest.options.head_dim;
  TensorArguments arguments(stream);
  arguments.add(kv.k);
  arguments.add(forest.workspace);
  const Tensor queries = arguments.take(q, {.name = "q",
                                            .dtypes = {"float32", "bfloat16", "float16"},
                                            .shape = {rows, heads, dim},
                                            .layout = Layout::kRows});
  const Tensor results = arguments.take(out, {.name = "out",
                                              .dtypes = {queries.dtype()},
                                              .shape = {rows, heads, dim},
                                              .layout = Layout::kRows,
                                              .written = true});
  const Tensor sums = arguments.take_optional(
      lse, {.name = "lse", .dtypes = {"float32"}, .shape = {rows, heads}, .written = true});
  arguments.finish();
  const cuda::TreeAttention attention = {.q = queries.data(),
                                         .out = results.data(),
                                         .dtype = dtype_of(queries.dtype(), "q"),
                                         .q_stride = queries.stride(0),
                                         .out_stride = results.stride(0),
                                         .lse = sums.data<float>(),
                                         .kv = kv.kv,
                                         .scale = scale,
                                         .soft_cap = soft_cap,
                                         .sliding_window = sliding_window};
  const py::gil_scoped_release release;
  cuda::tree_attention(attention, forest.bound->forest, forest.options, forest.state,
                       forest.workspace.data(), forest.workspace.num_bytes(), stream_of(stream));
}

cuda::AttentionPlanOptions make_options(std::int32_t num_heads, std::int32_t num_kv_heads,
                                        std::int32_t head_dim, const std::string& kv_dtype,
                                        bool batch_invariant, std::int32_t invariant_chunk,
                                        std::int64_t max_context_len, std::int32_t sliding_window) {
  return {.num_heads = num_heads,
          .num_kv_heads = num_kv_heads,
          .head_dim = head_dim,
          .kv_dtype = dtype_of(kv_dtype, "kv_dtype"),
          .batch_invariant = batch_invariant,
          .invariant_chunk = invariant_chunk,
          .max_context_len = max_context_len,
          .sliding_window = sliding_window};
}

}  // namespace

void init_cuda_attention(py::module_& m) {
  // module_local here and below: the tests load a second module, with these operations emulated.
  using py::arg;
  using Options = cuda::AttentionPlanOptions;
  const Options defaults;
  py::class_<Options>(m, "AttentionOptions", py::module_local(),
                      "Shape of the attention and split of its work.")
      .def(py::init(&make_options), py::kw_only(), arg("num_heads"), arg("num_kv_heads"),
           arg("head_dim"), arg("kv_dtype") = "bfloat16", arg("batch_invariant") = false,
           arg("invariant_chunk") = defaults.invariant_chunk,
           arg("max_context_len") = defaults.max_context_len,
           arg("sliding_window") = defaults.sliding_window)
      .def_readonly("num_heads", &Options::num_heads)
      .def_readonly("num_kv_heads", &Options::num_kv_heads)
      .def_readonly("head_dim", &Options::head_dim)
      .def_property_readonly("kv_dtype", [](const Options& self) { return name_of(self.kv_dtype); })
      .def_readonly("batch_invariant", &Options::batch_invariant)
      .def_readonly("sliding_window", &Options::sliding_window);
  py::class_<BoundForest, std::shared_ptr<BoundForest>>(
      m, "Forest", py::module_local(),
      "The rows of one pass, ragged: of each sequence first num_causal tokens that continue its "
      "context, then tree nodes given by their parents. All int32: row_offsets and node_offsets "
      "[num_sequences + 1], context_lens and num_causal [num_sequences], parents [num_nodes] (-1: "
      "no parent), block_table [num_sequences, pages].")
      .def(py::init(&make_forest), py::kw_only(), arg("row_offsets"), arg("context_lens"),
           arg("node_offsets"), arg("parents"), arg("block_table"), arg("num_rows"),
           arg("num_causal") = py::none(), arg("stream"));
  py::class_<PreparedForest>(m, "PreparedForest", py::module_local(),
                             "A forest and its plan in a workspace.");
  m.def(
      "attention_workspace_bytes",
      [](const Options& options, std::int32_t max_sequences, std::int32_t max_rows,
         std::int32_t max_nodes) {
        return cuda::attention_workspace_bytes(options, max_sequences, max_rows, max_nodes);
      },
      py::kw_only(), arg("options"), arg("max_sequences"), arg("max_rows"), arg("max_nodes"),
      "Bytes of workspace for forests up to these sizes.");
  m.def("prepare_forest", &prepare_forest, py::kw_only(), arg("forest"), arg("options"),
        arg("workspace"), arg("stream"),
        "Ancestor bitsets, depths and the plan of work, once per pass for all layers. The "
        "workspace, uint8, is zeroed once when it is allocated.");
  m.def("tree_attention", &tree_attention, py::kw_only(), arg("q"), arg("out"), arg("kv"),
        arg("forest"), arg("lse") = py::none(), arg("scale") = 0.0F, arg("soft_cap") = 0.0F,
        arg("sliding_window") = 0, arg("stream"),
        "Attention of all rows: q and out [num_rows, num_heads, head_dim], lse [num_rows, "
        "num_heads] float32. scale 0: 1 / sqrt(head_dim).");
}

}  // namespace smartspec::python
