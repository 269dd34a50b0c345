// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/proposer.hpp"

#include "python_proposer.hpp"

namespace smartspec::python {

namespace {

/// Calls a proposer outside an engine, native or not.
std::vector<TokenTree> propose(Proposer& proposer, const std::vector<OwnedRequest>& requests) {
  std::vector<ProposeRequest> shown(requests.size());
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const OwnedRequest& r = requests[i];
    shown[i] = {.id = r.id,
                .tokens = view<TokenId>(r.tokens, "tokens", {-1}),
                .num_prompt_tokens = r.num_prompt_tokens,
                .max_depth = r.max_depth,
                .max_nodes = r.max_nodes,
                .sampling = &r.sampling,
                .seed = r.seed,
                .cache_salt = r.cache_salt,
                .prediction = view<TokenId>(r.prediction, "prediction", {-1}),
                .min_survival = r.min_survival,
                .claims = r.claims};
  }
  std::vector<TokenTree> trees(requests.size());
  const py::gil_scoped_release release;
  proposer.propose(shown, trees);
  return trees;
}

OwnedRequest make_request(RequestId id, const TokenIds& tokens, std::int32_t max_depth,
                          std::optional<std::int32_t> num_prompt_tokens,
                          std::optional<std::int32_t> max_nodes, const SamplingParams& sampling,
                          std::uint64_t seed, std::uint64_t cache_salt, const TokenIds& prediction,
                          float min_survival) {
  const auto n = static_cast<std::int32_t>(tokens.ids.size());
  const std::int32_t nodes = max_nodes.value_or(max_depth);
  const std::int32_t prompt = num_prompt_tokens.value_or(n);
  if (n < 1 || max_depth < 1 || nodes < max_depth || prompt < 1 || prompt > n) {
    throw std::invalid_argument(
        "ProposeRequest: needs tokens, max_depth >= 1, max_nodes >= max_depth and "
        "num_prompt_tokens in [1, len(tokens)]");
  }
  return {
      id,
      py::array_t<TokenId>(n, tokens.ids.data()),
      prompt,
      max_depth,
      nodes,
      seed,
      sampling,
      cache_salt,
      py::array_t<TokenId>(static_cast<py::ssize_t>(prediction.ids.size()), prediction.ids.data()),
      min_survival,
      {}};
}

}  // namespace

void init_proposer(py::module_& m) {
  py::class_<ClaimReading>(m, "ClaimReading",
                           "How a proposer's claims read: with claim c of a token, its path being "
                           "accepted, logit P(accepted) = offset + scale * logit(c).")
      .def_readonly("offset", &ClaimReading::offset)
      .def_readonly("scale", &ClaimReading::scale)
      .def("accepted", &ClaimReading::accepted, py::arg("claim"),
           "In (0, 1); 1 for a claim of 1 or more, which is no claim.");
  py::class_<OwnedRequest>(m, "ProposeRequest",
                           "A running request that may draft now. `tokens` is the prompt and the "
                           "verified output, int32.")
      .def(py::init(&make_request), py::arg("id"), py::arg("tokens"), py::arg("max_depth"),
           py::arg("num_prompt_tokens") = py::none(), py::arg("max_nodes") = py::none(),
           py::arg_v("sampling", SamplingParams{}, "SamplingParams()"), py::arg("seed") = 0,
           py::arg("cache_salt") = 0, py::arg("prediction") = py::tuple(),
           py::arg("min_survival") = 0.0F)
      .def_readonly("id", &OwnedRequest::id)
      .def_readonly("tokens", &OwnedRequest::tokens)
      .def_readonly("num_prompt_tokens", &OwnedRequest::num_prompt_tokens)
      .def_readonly("max_depth", &OwnedRequest::max_depth)
      .def_readonly("max_nodes", &OwnedRequest::max_nodes)
      .def_readonly("sampling", &OwnedRequest::sampling)
      .def_readonly("seed", &OwnedRequest::seed)
      .def_readonly("cache_salt", &OwnedRequest::cache_salt, "The tenant.")
      .def_readonly("prediction", &OwnedRequest::prediction,
                    "Text that the output may resemble, from the user; int32.")
      .def_readonly("min_survival", &OwnedRequest::min_survival,
                    "A path whose survival falls below need not be continued.")
      .def_readonly("claims", &OwnedRequest::claims,
                    "How its survival is read: the product over its nodes.");

  py::class_<OwnedOutcome>(
      m, "Outcome", "What a step did to one request. `tree` is empty when it drafted nothing.")
      .def_readonly("id", &OwnedOutcome::id)
      .def_readonly("tree", &OwnedOutcome::tree)
      .def_readonly("accepted_path", &OwnedOutcome::accepted_path)
      .def_readonly("emitted", &OwnedOutcome::emitted);

  py::class_<Proposer, PythonProposer, py::smart_holder>(
      m, "Proposer",
      "Subclass it and define propose(self, requests) -> list with one entry per request: a "
      "TokenTree, a list of token ids (a chain), or None. Optional: observe(self, outcomes) and "
      "finish(self, request_id). An attribute pays_per_depth = True says that every level of a "
      "draft costs a model pass: it is then asked only for what the policy wants. Nothing it "
      "returns or raises can change any output.")
      .def(py::init<>())
      .def_property_readonly("name", &Proposer::name)
      .def("propose", &propose, py::arg("requests"));
}

}  // namespace smartspec::python
