// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/token_tree.hpp"
#include "views.hpp"

namespace smartspec::python {

namespace {

TokenTree make_tree(const TokenIds& tokens, const std::optional<std::vector<std::int32_t>>& parents,
                    const std::optional<std::vector<float>>& survival) {
  const std::size_t n = tokens.ids.size();
  if (!parents) {
    return TokenTree::chain(
        tokens.ids, survival ? std::span<const float>(*survival) : std::span<const float>());
  }
  if (parents->size() != n || (survival && survival->size() != n)) {
    throw std::invalid_argument("TokenTree: parents and survival must have one entry per token (" +
                                std::to_string(n) + ")");
  }
  TokenTree tree;
  for (std::size_t i = 0; i < n; ++i) {
    tree.add(tokens.ids[i], (*parents)[i], survival ? (*survival)[i] : 1.0F);
  }
  return tree;
}

}  // namespace

void init_tree(py::module_& m) {
  m.attr("MAX_TREE_NODES") = kMaxTreeNodes;
  py::class_<TokenTree>(m, "TokenTree",
                        "Draft tokens in topological order; parent -1 is the last verified token. "
                        "Without parents: a chain. Fields may be assigned freely; whoever takes "
                        "the tree checks it.")
      .def(py::init<>())
      .def(py::init(&make_tree), py::arg("tokens"), py::arg("parents") = py::none(),
           py::arg("survival") = py::none())
      .def_readwrite("tokens", &TokenTree::tokens)
      .def_readwrite("parents", &TokenTree::parents)
      .def_readwrite("depths", &TokenTree::depths)
      .def_readwrite("survival", &TokenTree::survival)
      .def("__len__", [](const TokenTree& tree) { return tree.tokens.size(); })
      .def("add", &TokenTree::add, py::arg("token"), py::arg("parent"), py::arg("survival") = 1.0F,
           "Appends a node and returns its index.")
      .def("validate", &TokenTree::validate, py::arg("vocab_size"),
           py::arg("max_nodes") = kMaxTreeNodes, py::arg("max_depth") = kMaxTreeNodes,
           "Empty when sound, else the first fault in words.")
      .def("__repr__", [](const TokenTree& tree) {
        return py::str("TokenTree(tokens={}, parents={}, survival={})")
            .format(tree.tokens, tree.parents, tree.survival);
      });
}

}  // namespace smartspec::python
