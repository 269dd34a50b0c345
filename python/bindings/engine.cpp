// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/engine.hpp"

#include <memory>

#include "guard.hpp"

namespace smartspec::python {

namespace {

/// The C++ engine wants one thread at a time; Python threads queue here instead of racing.
class BoundEngine {
 public:
  BoundEngine(const std::shared_ptr<Model>& model, const EngineOptions& options,
              const std::shared_ptr<StopVocabulary>& stops, std::shared_ptr<Proposer> proposer,
              std::shared_ptr<LengthPolicy> policy)
      : engine_(model, options, stops ? stops : std::make_shared<StopVocabulary>(),
                std::move(proposer), std::move(policy)) {}

  std::vector<RequestOutput> step() {
    const ExclusiveCall call(guard_);
    const auto outputs = engine_.step();
    return {outputs.begin(), outputs.end()};
  }
  RequestId add_request(const TokenIds& prompt, const SamplingParams& sampling,
                        std::int32_t priority, std::uint64_t cache_salt, bool speculate,
                        std::optional<std::int32_t> max_draft_tokens, const TokenIds& prediction) {
    const py::gil_scoped_release release;  // may wait for a step whose proposer needs the GIL
    return engine_.add_request({.prompt_token_ids = prompt.ids,
                                .sampling = sampling,
                                .priority = priority,
                                .cache_salt = cache_salt,
                                .speculate = speculate,
                                .max_draft_tokens = max_draft_tokens,
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
      .def(py::init<const std::shared_ptr<Model>&, const EngineOptions&,
                    const std::shared_ptr<StopVocabulary>&, std::shared_ptr<Proposer>,
                    std::shared_ptr<LengthPolicy>>(),
           py::arg("model"), py::arg_v("options", EngineOptions{}, "EngineOptions()"),
           py::arg("stops") = py::none(), py::arg("proposer") = py::none(),
           py::arg("policy") = py::none(),
           py::call_guard<py::gil_scoped_release>())  // waits for the runtime's mutex
      .def(
          "add_request", &BoundEngine::add_request, py::arg("prompt_token_ids"),
          py::arg_v("sampling", SamplingParams{}, "SamplingParams()"), py::arg("priority") = 0,
          py::arg("cache_salt") = 0, py::arg("speculate") = true,
          py::arg("max_draft_tokens") = py::none(), py::arg("prediction") = py::tuple(),
          "Checks everything, then queues the request; returns its id. `prediction`: text that the "
          "output may resemble, for proposers that can use it.")
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
