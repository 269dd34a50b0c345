// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl/filesystem.h>

#include <optional>
#include <tuple>

#include "smartspec/baseline_policies.hpp"
#include "smartspec/error.hpp"
#include "smartspec/goodput_policy.hpp"
#include "smartspec/length_policy.hpp"
#include "smartspec/policy_trace.hpp"
#include "views.hpp"

namespace smartspec::python {

namespace {

void bind_control(py::module_& m) {
  py::class_<SpeculationControl>(m, "SpeculationControl", "What a user asks for one request.")
      .def(py::init([](bool enabled, std::int32_t min_tokens, std::int32_t max_tokens,
                       std::int32_t proposer, double tpot_target) {
             return SpeculationControl{.enabled = enabled,
                                       .min_tokens = min_tokens,
                                       .max_tokens = max_tokens,
                                       .proposer = proposer,
                                       .tpot_target = tpot_target};
           }),
           py::arg("enabled") = true, py::arg("min_tokens") = 0,
           py::arg("max_tokens") = kMaxTreeNodes, py::arg("proposer") = -1,
           py::arg("tpot_target") = 0.0)
      .def_readwrite("enabled", &SpeculationControl::enabled)
      .def_readwrite("min_tokens", &SpeculationControl::min_tokens,
                     "Draft nodes at least, where that many are drafted.")
      .def_readwrite("max_tokens", &SpeculationControl::max_tokens, "Draft nodes at most.")
      .def_readwrite("proposer", &SpeculationControl::proposer,
                     "Only this one of the engine's; -1: any.")
      .def_readwrite("tpot_target", &SpeculationControl::tpot_target,
                     "Seconds per output token; 0: none.")
      .def("validate", &SpeculationControl::validate, py::arg("num_proposers"));
}

void bind_stats(py::module_& m) {
  py::class_<PolicyStats>(m, "PolicyStats", "What a policy did so far; totals.")
      .def_readonly("num_steps", &PolicyStats::num_steps)
      .def_readonly("length_histogram", &PolicyStats::length_histogram,
                    "Decoding requests by nodes verified; the last entry: that many or more.")
      .def_readonly("num_drafted", &PolicyStats::num_drafted, "Nodes verified.")
      .def_readonly("num_accepted", &PolicyStats::num_accepted)
      .def_readonly("num_probes", &PolicyStats::num_probes, "Drafts made to learn, not to gain.")
      .def_readonly("expected_accepted", &PolicyStats::expected_accepted)
      .def_readonly("predicted_seconds", &PolicyStats::predicted_seconds)
      .def_readonly("measured_seconds", &PolicyStats::measured_seconds)
      .def_readonly("median_step_error", &PolicyStats::median_step_error)
      .def_readonly("wasted_seconds", &PolicyStats::wasted_seconds,
                    "Predicted cost of the nodes that were rejected.")
      .def_readonly("regret", &PolicyStats::regret,
                    "Share of goodput missed against lengths known in hindsight.")
      .def_readonly("decision_seconds", &PolicyStats::decision_seconds);
}

void bind_policy(py::module_& m) {
  py::class_<LengthPolicy, std::shared_ptr<LengthPolicy>>(m, "LengthPolicy",
                                                          "How much each request may draft.")
      .def_property_readonly("name", &LengthPolicy::name)
      .def_property_readonly("max_depth", &LengthPolicy::max_depth,
                             "Longest draft it will ever want.")
      .def("stats", &LengthPolicy::stats, "Not while an engine that has it is in step().");
  m.def("make_off_policy", &make_off_policy, "Length 0 for everyone.");
  m.def("make_fixed_policy", &make_fixed_policy, py::arg("max_tokens"),
        "min(max_tokens, what may still be emitted) for everyone.");
}

void bind_turbospec(py::module_& m) {
  py::class_<TurboSpecOptions>(m, "TurboSpecOptions")
      .def(py::init<>())
      .def_readwrite("max_tokens", &TurboSpecOptions::max_tokens)
      .def_readwrite("period", &TurboSpecOptions::period)
      .def_readwrite("window", &TurboSpecOptions::window)
      .def_readwrite("first_acceptance", &TurboSpecOptions::first_acceptance)
      .def_readwrite("overhead", &TurboSpecOptions::overhead)
      .def_readwrite("target", &TurboSpecOptions::target)
      .def_readwrite("draft", &TurboSpecOptions::draft);
  m.def("make_turbospec_policy", &make_turbospec_policy,
        py::arg_v("options", TurboSpecOptions{}, "TurboSpecOptions()"),
        "One length for the batch, decided once per period, as TurboSpec's authors have it.");
}

void bind_baselines(py::module_& m) {
  m.def(
      "make_table_policy",
      [](const std::vector<std::tuple<std::int32_t, std::int32_t, std::int32_t>>& table) {
        std::vector<BatchLength> rows;
        for (const auto& [first, last, num_tokens] : table) {
          rows.push_back({.first = first, .last = last, .num_tokens = num_tokens});
        }
        return make_table_policy(std::move(rows));
      },
      py::arg("table"),
      "A length per batch size: rows (first, last, num_tokens), ascending; 0 beyond them.");
  m.def("make_threshold_policy", &make_threshold_policy, py::arg("max_tokens"),
        py::arg("threshold") = 0.7,
        "Drafts on while P(some token of the draft is rejected) <= threshold (SpecDec++).");
  m.def("make_disco_policy", &make_disco_policy, py::arg("max_tokens"), py::arg("confidence") = 0.4,
        "Drafts on while the next token's claimed acceptance is at least `confidence` (DISCO).");
  m.def("make_tetris_policy", &make_tetris_policy, py::arg("max_tokens"), py::arg("capacity"),
        "Full drafts; verifies the `capacity` most likely nodes of the batch (TETRIS).");
  m.def("make_full_draft_policy", &make_full_draft_policy, py::arg("max_tokens"), py::arg("target"),
        "Full drafts; verifies the best nodes of the batch for a cost that knows only the number "
        "of tokens (vLLM's enable_adaptive_verification).");
  m.def("make_sequoia_policy", &make_sequoia_policy, py::arg("num_nodes"), py::arg("max_depth"),
        py::arg("rank_acceptance"), py::call_guard<py::gil_scoped_release>(),
        "The tree shape of the highest expected length when the j-th child of a node is accepted "
        "with rank_acceptance[j] (Sequoia).");
  m.def("make_dynamic_depth_policy", &make_dynamic_depth_policy, py::arg("max_tokens"),
        py::arg("threshold") = 0.3,
        "Drafts on while a level's claimed survivals add up to `threshold` (DDD).");
}

void bind_goodput(py::module_& m) {
  py::class_<SurvivalModelOptions>(m, "SurvivalModelOptions")
      .def(py::init<>())
      .def_readwrite("num_proposers", &SurvivalModelOptions::num_proposers)
      .def_readwrite("first_rate", &SurvivalModelOptions::first_rate)
      .def_readwrite("memory_tokens", &SurvivalModelOptions::memory_tokens)
      .def_readwrite("request_shrinkage", &SurvivalModelOptions::request_shrinkage);
  py::class_<GoodputOptions>(m, "GoodputOptions")
      .def(py::init<>())
      .def_readwrite("max_depth", &GoodputOptions::max_depth)
      .def_readwrite("max_paid_depth", &GoodputOptions::max_paid_depth)
      .def_readwrite("probe_budget", &GoodputOptions::probe_budget)
      .def_readwrite("margin", &GoodputOptions::margin)
      .def_readwrite("target", &GoodputOptions::target)
      .def_readwrite("draft", &GoodputOptions::draft)
      .def_readwrite("cost", &GoodputOptions::cost)
      .def_readwrite("survival", &GoodputOptions::survival);
  py::class_<GoodputPolicy, LengthPolicy, std::shared_ptr<GoodputPolicy>>(
      m, "GoodputPolicy", "What it has learnt must not be read while its engine is in step().")
      .def_property_readonly(
          "target_coefficients",
          [](const GoodputPolicy& policy) { return policy.target_cost().coefficients(); })
      .def(
          "draft_coefficients",
          [](const GoodputPolicy& policy, std::int32_t proposer) {
            const CostModel* cost = policy.draft_cost(proposer);
            return cost != nullptr ? std::optional(cost->coefficients()) : std::nullopt;
          },
          py::arg("proposer"), "None: it does not pay per depth, or nothing was decided yet.");
  m.def("make_goodput_policy", &make_goodput_policy,
        py::arg_v("options", GoodputOptions{}, "GoodputOptions()"),
        "For every request the length that makes the batch emit most tokens per second.");
}

void bind_traces(py::module_& m) {
  py::class_<ReplayResult>(m, "ReplayResult")
      .def_readonly("recorded_policy", &ReplayResult::recorded_policy)
      .def_readonly("num_steps", &ReplayResult::num_steps)
      .def_readonly("num_decisions", &ReplayResult::num_decisions, "Requests times steps.")
      .def_readonly("num_different", &ReplayResult::num_different)
      .def_readonly("first_different_step", &ReplayResult::first_different_step, "-1: none.")
      .def_readonly("stats", &ReplayResult::stats);
  m.def("make_recording_policy", &make_recording_policy, py::arg("policy"), py::arg("path"),
        "`policy`, with every call and its answer written to `path`; holds no token ids.");
  m.def(
      "finish_recording",
      [](LengthPolicy& policy) {
        if (const std::string error = finish_recording(policy); !error.empty()) throw Error(error);
      },
      py::arg("policy"), "Writes what is left and closes; raises Error when anything was lost.");
  m.def("replay", &replay, py::arg("path"), py::arg("policy"),
        py::call_guard<py::gil_scoped_release>(),
        "Shows a recorded trace to a fresh policy and counts what it decides differently.");
}

}  // namespace

void init_policies(py::module_& m) {
  bind_control(m);
  bind_stats(m);
  bind_policy(m);
  bind_turbospec(m);
  bind_baselines(m);
  bind_goodput(m);
  bind_traces(m);
}

}  // namespace smartspec::python
