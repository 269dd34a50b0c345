// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/typing.h>

#include "smartspec/simulator.hpp"
#include "views.hpp"

namespace smartspec::python {

namespace {

using Columns = py::typing::Dict<py::str, py::array>;

/// One field of every element, as an array.
template <class Struct, class Field>
py::array_t<Field> column(const std::vector<Struct>& rows, Field Struct::* field) {
  py::array_t<Field> values(static_cast<py::ssize_t>(rows.size()));
  Field* out = values.mutable_data();
  for (const Struct& row : rows) *out++ = row.*field;
  return values;
}

Columns steps_of(const SimulationResult& result) {
  const auto& rows = result.steps;
  Columns columns;
  columns["start"] = column(rows, &SimulatedStep::start);
  columns["seconds"] = column(rows, &SimulatedStep::seconds);
  columns["num_decodes"] = column(rows, &SimulatedStep::num_decodes);
  columns["num_tokens"] = column(rows, &SimulatedStep::num_tokens);
  columns["num_drafted"] = column(rows, &SimulatedStep::num_drafted);
  columns["num_verified"] = column(rows, &SimulatedStep::num_verified);
  columns["num_emitted"] = column(rows, &SimulatedStep::num_emitted);
  columns["draft_passes"] = column(rows, &SimulatedStep::draft_passes);
  columns["expected_emitted"] = column(rows, &SimulatedStep::expected_emitted);
  return columns;
}

Columns requests_of(const SimulationResult& result) {
  const auto& rows = result.requests;
  Columns columns;
  columns["arrival"] = column(rows, &SimulatedRequestResult::arrival);
  columns["first_token"] = column(rows, &SimulatedRequestResult::first_token);
  columns["finish"] = column(rows, &SimulatedRequestResult::finish);
  columns["num_output_tokens"] = column(rows, &SimulatedRequestResult::num_output_tokens);
  columns["num_preemptions"] = column(rows, &SimulatedRequestResult::num_preemptions);
  return columns;
}

void set_requests(SimulationOptions& options, const py::array& arrivals, const py::array& prompts,
                  const py::array& outputs) {
  const auto arrival = view<double>(arrivals, "arrivals", {-1});
  const auto size = static_cast<py::ssize_t>(arrival.size());
  const auto prompt = view<std::int32_t>(prompts, "prompt_tokens", {size});
  const auto output = view<std::int32_t>(outputs, "output_tokens", {size});
  options.requests.assign(arrival.size(), {});
  for (std::size_t i = 0; i < arrival.size(); ++i) {
    SimulatedRequest& request = options.requests[i];
    request.arrival = arrival[i];
    request.num_prompt_tokens = prompt[i];
    request.num_output_tokens = output[i];
  }
}

void init_world(py::module_& m) {
  py::class_<AcceptanceModel>(m, "AcceptanceModel",
                              "P(draft token accepted) = sigmoid(logit(rate) + x - decay * depth); "
                              "x wanders along the output. Lists are copied in and out.")
      .def(py::init<>())
      .def_readwrite("rates", &AcceptanceModel::rates, "In [0, 1), each as likely.")
      .def_readwrite("recorded", &AcceptanceModel::recorded,
                     "Rates along recorded outputs, in place of rates and spread.")
      .def_readwrite("spread", &AcceptanceModel::spread, "Deviation of x.")
      .def_readwrite("persistence", &AcceptanceModel::persistence, "Correlation of neighbours.")
      .def_readwrite("decay", &AcceptanceModel::decay);

  py::class_<SimulatedProposer>(m, "SimulatedProposer")
      .def(py::init<>())
      .def_readwrite("name", &SimulatedProposer::name)
      .def_readwrite("pays_per_depth", &SimulatedProposer::pays_per_depth)
      .def_readwrite("acceptance", &SimulatedProposer::acceptance)
      .def_readwrite("coverage", &SimulatedProposer::coverage,
                     "Share of steps at which it has anything to propose.")
      .def_readwrite("claim_noise", &SimulatedProposer::claim_noise,
                     "Deviation of claimed logits; below 0: it claims 1.")
      .def_readwrite("claim_bias", &SimulatedProposer::claim_bias)
      .def_readwrite("max_depth", &SimulatedProposer::max_depth)
      .def_readwrite("pass_cost", &SimulatedProposer::pass);

  py::class_<SimulatedRequest>(m, "SimulatedRequest")
      .def(py::init<>())
      .def_readwrite("arrival", &SimulatedRequest::arrival)
      .def_readwrite("num_prompt_tokens", &SimulatedRequest::num_prompt_tokens)
      .def_readwrite("num_output_tokens", &SimulatedRequest::num_output_tokens)
      .def_readwrite("priority", &SimulatedRequest::priority)
      .def_readwrite("control", &SimulatedRequest::control);

  py::class_<SimulatedShift>(m, "SimulatedShift", "A change of the world from `step` on.")
      .def(py::init<>())
      .def_readwrite("step", &SimulatedShift::step)
      .def_readwrite("proposer", &SimulatedShift::proposer, "Whose acceptance; -1: nobody's.")
      .def_readwrite("acceptance", &SimulatedShift::acceptance)
      .def_readwrite("batch", &SimulatedShift::batch, "-1: as it was.")
      .def_readwrite("slowdown", &SimulatedShift::slowdown);
}

void init_options(py::module_& m) {
  py::class_<SchedulerOptions>(m, "SchedulerOptions")
      .def(py::init<>())
      .def_readwrite("max_num_seqs", &SchedulerOptions::max_num_seqs)
      .def_readwrite("max_num_batched_tokens", &SchedulerOptions::max_num_batched_tokens)
      .def_readwrite("aging_seconds", &SchedulerOptions::aging_seconds);

  py::class_<SimulationOptions>(m, "SimulationOptions",
                                "Lists are copied in and out: assign whole ones.")
      .def(py::init<>())
      .def_readwrite("requests", &SimulationOptions::requests, "Open loop, by arrival.")
      .def("set_requests", &set_requests, py::arg("arrivals"), py::arg("prompt_tokens"),
           py::arg("output_tokens"), "`requests` from arrays: float64, int32 and int32 [n].")
      .def_readwrite("batch", &SimulationOptions::batch,
                     "Closed loop: so many requests always run, without prompts.")
      .def_readwrite("context", &SimulationOptions::context)
      .def_readwrite("output_tokens", &SimulationOptions::output_tokens, "Mean of the closed loop.")
      .def_readwrite("max_steps", &SimulationOptions::max_steps)
      .def_readwrite("warmup_steps", &SimulationOptions::warmup_steps)
      .def_readwrite("proposers", &SimulationOptions::proposers)
      .def_readwrite("shifts", &SimulationOptions::shifts)
      .def_readwrite("target", &SimulationOptions::target, "True seconds of a pass.")
      .def_readwrite("overhead", &SimulationOptions::overhead)
      .def_readwrite("time_noise", &SimulationOptions::time_noise)
      .def_readwrite("outlier_rate", &SimulationOptions::outlier_rate)
      .def_readwrite("scheduler", &SimulationOptions::scheduler)
      .def_readwrite("num_kv_blocks", &SimulationOptions::num_kv_blocks, "0: not limited.")
      .def_readwrite("block_size", &SimulationOptions::block_size)
      .def_readwrite("record_steps", &SimulationOptions::record_steps)
      .def_readwrite("seed", &SimulationOptions::seed)
      .def("validate", &SimulationOptions::validate, "Raises ValueError naming the field.");
}

void init_result(py::module_& m) {
  py::class_<SimulationResult>(m, "SimulationResult")
      .def_readonly("seconds", &SimulationResult::seconds, "Virtual, after the warm-up.")
      .def_readonly("num_steps", &SimulationResult::num_steps)
      .def_readonly("num_emitted", &SimulationResult::num_emitted)
      .def_readonly("expected_emitted", &SimulationResult::expected_emitted,
                    "num_emitted without the luck of the draws.")
      .def_readonly("num_drafted", &SimulationResult::num_drafted)
      .def_readonly("num_verified", &SimulationResult::num_verified)
      .def_readonly("num_accepted", &SimulationResult::num_accepted)
      .def_readonly("goodput", &SimulationResult::goodput, "expected_emitted / seconds.")
      .def_readonly("wall_seconds", &SimulationResult::wall_seconds)
      .def_property_readonly("steps", &steps_of, "Arrays by field; empty unless recorded.")
      .def_property_readonly("requests", &requests_of, "Arrays by field, in an open loop.")
      .def_property_readonly(
          "output_gaps",
          [](const SimulationResult& result) {
            return py::array_t<double>(static_cast<py::ssize_t>(result.output_gaps.size()),
                                       result.output_gaps.data());
          },
          "Seconds between outputs of a request, of all of them, in an open loop.")
      .def_property_readonly(
          "num_preemptions",
          [](const SimulationResult& result) { return result.scheduler.num_preemptions; })
      .def_property_readonly(
          "policy", [](const SimulationResult& result) { return result.scheduler.policy; });
}

}  // namespace

void init_simulate(py::module_& m) {
  init_world(m);
  init_options(m);
  init_result(m);
  m.def("simulate", &simulate, py::arg("options"), py::arg("policy") = py::none(),
        py::call_guard<py::gil_scoped_release>(),
        "A server in virtual time, by the real scheduler; policy None: the oracle. One policy "
        "object serves one simulation at a time.");
}

}  // namespace smartspec::python
