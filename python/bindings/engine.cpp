// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/engine.hpp"

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "guard.hpp"

namespace smartspec::python {

namespace {

/// What add_request() takes of one request, by name.
struct RequestArguments {
  std::int32_t priority;
  std::uint64_t cache_salt;
  bool speculate;
  std::int32_t min_draft_tokens;
  std::optional<std::int32_t> max_draft_tokens;
  std::optional<std::string> proposer;
  double tpot_target;
};

/// The C++ engine wants one thread at a time; Python threads queue here instead of racing.
class BoundEngine {
 public:
  BoundEngine(const std::shared_ptr<Model>& model, const EngineOptions& options,
              const std::shared_ptr<StopVocabulary>& stops,
              std::vector<std::shared_ptr<Proposer>> proposers,
              std::shared_ptr<LengthPolicy> policy)
      : engine_(model, options, stops ? stops : std::make_shared<StopVocabulary>(),
                std::move(proposers), std::move(policy)) {}

  std::vector<RequestOutput> step() {
    const ExclusiveCall call(guard_);
    const auto outputs = engine_.step();
    return {outputs.begin(), outputs.end()};
  }
  RequestId add_request(const TokenIds& prompt, const SamplingParams& sampling,
                        const RequestArguments& arguments, const TokenIds& prediction) {
    const py::gil_scoped_release release;  // may wait for a step whose proposer needs the GIL
    return engine_.add_request({.prompt_token_ids = prompt.ids,
                                .sampling = sampling,
                                .priority = arguments.priority,
                                .cache_salt = arguments.cache_salt,
                                .speculate = arguments.speculate,
                                .min_draft_tokens = arguments.min_draft_tokens,
                                .max_draft_tokens = arguments.max_draft_tokens,
                                .proposer = arguments.proposer,
                                .tpot_target = arguments.tpot_target,
                                .prediction = prediction.ids});
  }
  bool abort(RequestId id) {
    const py::gil_scoped_release release;
    return engine_.abort(id);
  }
  bool has_unfinished() {
    const ExclusiveCall call(guard_);
    return engine_.has_unfinished();
  }
  EngineStats stats() {
    const ExclusiveCall call(guard_);
    return engine_.stats();
  }
  bool preempt(RequestId id, std::int32_t index) {
    const ExclusiveCall call(guard_);
    return engine_.preempt(id, index);
  }
  void clear_prefix_cache() {
    const ExclusiveCall call(guard_);
    engine_.clear_prefix_cache();
  }
  std::string check_integrity() {
    const ExclusiveCall call(guard_);
    return engine_.check_integrity();
  }
  EngineOptions options() const { return engine_.options(); }
  ModelConfig model_config() const { return engine_.model_config(); }

 private:
  CallGuard guard_;
  Engine engine_;
};

}  // namespace

void init_engine(py::module_& m) {
  py::class_<BoundEngine>(
      m, "Engine",
      "Continuous batching over one model, speculating as the proposer and the policy say, and "
      "emitting exactly what plain decoding would emit. Any thread may call any method; step() and "
      "the rest run one at a time, add_request() and abort() also during a step.")
      .def(py::init([](const std::shared_ptr<Model>& model, const EngineOptions& options,
                       const std::shared_ptr<StopVocabulary>& stops,
                       const std::shared_ptr<Proposer>& proposer,
                       std::shared_ptr<LengthPolicy> policy) {
             std::vector<std::shared_ptr<Proposer>> proposers;
             if (proposer != nullptr) proposers.push_back(proposer);
             const py::gil_scoped_release release;  // waits for the runtime's mutex
             return std::make_unique<BoundEngine>(model, options, stops, std::move(proposers),
                                                  std::move(policy));
           }),
           py::arg("model"), py::arg_v("options", EngineOptions{}, "EngineOptions()"),
           py::arg("stops") = py::none(), py::arg("proposer") = py::none(),
           py::arg("policy") = py::none())
      .def(py::init<const std::shared_ptr<Model>&, const EngineOptions&,
                    const std::shared_ptr<StopVocabulary>&, std::vector<std::shared_ptr<Proposer>>,
                    std::shared_ptr<LengthPolicy>>(),
           py::arg("model"), py::arg("options"), py::arg("stops"), py::arg("proposers"),
           py::arg("policy") = py::none(), py::call_guard<py::gil_scoped_release>(),
           "Several proposers, among which the policy chooses per request. One with "
           "`pays_per_depth` is asked only for what the policy wants.")
      .def(
          "add_request",
          [](BoundEngine& engine, const TokenIds& prompt, const SamplingParams& sampling,
             std::int32_t priority, std::uint64_t cache_salt, bool speculate,
             std::optional<std::int32_t> max_draft_tokens, const TokenIds& prediction,
             std::int32_t min_draft_tokens, std::optional<std::string> proposer,
             double tpot_target) {
            return engine.add_request(prompt, sampling,
                                      {priority, cache_salt, speculate, min_draft_tokens,
                                       max_draft_tokens, std::move(proposer), tpot_target},
                                      prediction);
          },
          py::arg("prompt_token_ids"), py::arg_v("sampling", SamplingParams{}, "SamplingParams()"),
          py::arg("priority") = 0, py::arg("cache_salt") = 0, py::arg("speculate") = true,
          py::arg("max_draft_tokens") = py::none(), py::arg("prediction") = py::tuple(),
          py::arg("min_draft_tokens") = 0, py::arg("proposer") = py::none(),
          py::arg("tpot_target") = 0.0,
          "Checks everything, then queues the request; returns its id. `prediction`: text that the "
          "output may resemble, for proposers that can use it. Draft tokens verified per step: "
          "min_draft_tokens at least where so many are drafted, max_draft_tokens at most. "
          "`proposer`: only the one of this name. `tpot_target`: seconds per output token.")
      .def("abort", &BoundEngine::abort, py::arg("request_id"),
           "False when unknown or already ended. No output follows.")
      .def("step", &BoundEngine::step,
           "One forward pass; outputs of requests that emitted or ended.")
      .def("has_unfinished", &BoundEngine::has_unfinished)
      .def("stats", &BoundEngine::stats)
      .def("preempt", &BoundEngine::preempt, py::arg("request_id"), py::arg("index") = 0,
           "For tests: preempts a running request now.")
      .def("clear_prefix_cache", &BoundEngine::clear_prefix_cache)
      .def("check_integrity", &BoundEngine::check_integrity, "Empty when sound.")
      .def_property_readonly("options", &BoundEngine::options)
      .def_property_readonly("model_config", &BoundEngine::model_config);
}

}  // namespace smartspec::python
