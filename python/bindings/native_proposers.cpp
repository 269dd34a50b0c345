// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/draft_model.hpp"
#include "smartspec/prompt_lookup.hpp"
#include "smartspec/suffix_proposer.hpp"
#include "smartspec/token_tree.hpp"
#include "views.hpp"

namespace smartspec::python {

void init_native_proposers(py::module_& m) {
  py::class_<PromptLookupProposer, Proposer, py::smart_holder>(
      m, "PromptLookupProposer",
      "Drafts what followed the latest earlier occurrence of the newest n-gram.")
      .def(py::init([](std::int32_t prompt_lookup_max, std::int32_t prompt_lookup_min,
                       std::int32_t tree_width) {
             return std::make_unique<PromptLookupProposer>(
                 PromptLookupOptions{.prompt_lookup_max = prompt_lookup_max,
                                     .prompt_lookup_min = prompt_lookup_min,
                                     .tree_width = tree_width});
           }),
           py::arg("prompt_lookup_max") = 4, py::arg("prompt_lookup_min") = 2,
           py::arg("tree_width") = 1);

  py::class_<DraftModelOptions>(m, "DraftModelOptions")
      .def(py::init<>())
      .def_readwrite("tree_width", &DraftModelOptions::tree_width)
      .def_readwrite("block_size", &DraftModelOptions::block_size)
      .def_readwrite("num_kv_blocks", &DraftModelOptions::num_kv_blocks)
      .def_readwrite("max_num_seqs", &DraftModelOptions::max_num_seqs)
      .def_readwrite("max_model_len", &DraftModelOptions::max_model_len)
      .def_readwrite("max_num_batched_tokens", &DraftModelOptions::max_num_batched_tokens)
      .def_readwrite("kv_memory_bytes", &DraftModelOptions::kv_memory_bytes);

  py::class_<DraftModelProposer, Proposer, py::smart_holder>(
      m, "DraftModelProposer", "Drafts with a small model that draws with the target's noise.")
      .def(py::init([](const std::shared_ptr<Model>& model, std::int32_t target_vocab_size,
                       const DraftModelOptions& options) {
             const py::gil_scoped_release release;
             return std::make_unique<DraftModelProposer>(model, options, target_vocab_size);
           }),
           py::arg("model"), py::arg("target_vocab_size"),
           py::arg_v("options", DraftModelOptions{}, "DraftModelOptions()"))
      .def("check_integrity", &DraftModelProposer::check_integrity, "Empty when sound.");

  py::class_<SuffixProposer, Proposer, py::smart_holder>(
      m, "SuffixProposer",
      "Drafts from a SuffixIndex, and feeds it what requests emit; several engines may share one. "
      "The namespace of a request is its cache_salt in decimal, '' for 0.")
      .def(py::init(
               [](std::shared_ptr<SuffixIndex> index, float min_survival, std::int32_t tree_width) {
                 return std::make_unique<SuffixProposer>(
                     std::move(index),
                     SuffixProposerOptions{.min_survival = min_survival, .tree_width = tree_width});
               }),
           py::arg("index"), py::arg("min_survival") = SuffixProposerOptions{}.min_survival,
           py::arg("tree_width") = SuffixProposerOptions{}.tree_width)
      .def_property_readonly("index", &SuffixProposer::index);

  py::class_<StackedProposer, Proposer, py::smart_holder>(
      m, "StackedProposer",
      "`free` where it expects at least margin times the accepted tokens that `paid` does for the "
      "request, `paid` elsewhere, at most paid_max_depth tokens deep.")
      .def(py::init([](std::shared_ptr<Proposer> free, std::shared_ptr<Proposer> paid,
                       double margin, std::int32_t paid_max_depth) {
             return std::make_unique<StackedProposer>(std::move(free), std::move(paid), margin,
                                                      paid_max_depth);
           }),
           py::arg("free"), py::arg("paid"), py::arg("margin") = 0.8,
           py::arg("paid_max_depth") = kMaxTreeNodes);
}

}  // namespace smartspec::python
