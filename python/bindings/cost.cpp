// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/functional.h>

#include <functional>
#include <memory>
#include <optional>

#include "smartspec/cost_model.hpp"
#include "smartspec/profile.hpp"
#include "views.hpp"

namespace smartspec::python {

namespace {

void init_load(py::module_& m) {
  py::class_<StepLoad>(m, "StepLoad", "What a forward pass, or several together, computes.")
      .def(py::init([](std::int32_t num_tokens, std::int32_t num_sequences, std::int32_t num_logits,
                       std::int64_t kv_tokens, std::int64_t attention_pairs,
                       std::int32_t num_passes) {
             return StepLoad{.num_passes = num_passes,
                             .num_tokens = num_tokens,
                             .num_sequences = num_sequences,
                             .num_logits = num_logits,
                             .kv_tokens = kv_tokens,
                             .attention_pairs = attention_pairs};
           }),
           py::arg("num_tokens") = 0, py::arg("num_sequences") = 0, py::arg("num_logits") = 0,
           py::arg("kv_tokens") = 0, py::arg("attention_pairs") = 0, py::arg("num_passes") = 1)
      .def_readwrite("num_passes", &StepLoad::num_passes)
      .def_readwrite("num_tokens", &StepLoad::num_tokens)
      .def_readwrite("num_sequences", &StepLoad::num_sequences)
      .def_readwrite("num_logits", &StepLoad::num_logits)
      .def_readwrite("kv_tokens", &StepLoad::kv_tokens)
      .def_readwrite("attention_pairs", &StepLoad::attention_pairs);

  py::class_<CostSample>(m, "CostSample", "A load and the seconds it took.")
      .def(py::init([](const StepLoad& load, double seconds) {
             return CostSample{.load = load, .seconds = seconds};
           }),
           py::arg("load"), py::arg("seconds"))
      .def_readwrite("load", &CostSample::load)
      .def_readwrite("seconds", &CostSample::seconds);
}

void init_coefficients(py::module_& m) {
  py::class_<CostCoefficients>(
      m, "CostCoefficients",
      "The numbers behind a CostModel. Lists are copied in and out: assign whole ones.")
      .def(py::init<>())
      .def_readwrite("tokens", &CostCoefficients::tokens)
      .def_readwrite("seconds", &CostCoefficients::seconds)
      .def_readwrite("tiers", &CostCoefficients::tiers)
      .def_readwrite("per_sequence", &CostCoefficients::per_sequence)
      .def_readwrite("per_logit", &CostCoefficients::per_logit)
      .def_readwrite("per_kv_token", &CostCoefficients::per_kv_token)
      .def_readwrite("per_attention_pair", &CostCoefficients::per_attention_pair)
      .def_readwrite("num_experts", &CostCoefficients::num_experts)
      .def_readwrite("experts_per_token", &CostCoefficients::experts_per_token)
      .def_readwrite("per_expert", &CostCoefficients::per_expert)
      .def("validate", &CostCoefficients::validate, "Raises ValueError naming the field.");

  py::class_<Roofline>(m, "Roofline", "A model and a device before anything was measured.")
      .def(py::init<>())
      .def_readwrite("weight_bytes", &Roofline::weight_bytes)
      .def_readwrite("kv_bytes_per_token", &Roofline::kv_bytes_per_token)
      .def_readwrite("flops_per_token", &Roofline::flops_per_token)
      .def_readwrite("flops_per_logit", &Roofline::flops_per_logit)
      .def_readwrite("flops_per_pair", &Roofline::flops_per_pair)
      .def_readwrite("bytes_per_second", &Roofline::bytes_per_second)
      .def_readwrite("flops_per_second", &Roofline::flops_per_second)
      .def_readwrite("overhead_seconds", &Roofline::overhead_seconds);
  m.def("make_roofline", &make_roofline, py::arg("roofline"),
        "Coefficients to start from: the larger of what memory and arithmetic need.");
  m.def(
      "fit_cost",
      [](const std::vector<CostSample>& samples) {
        const py::gil_scoped_release release;
        return fit_cost(samples);
      },
      py::arg("samples"), "Coefficients from measurements, none negative.");
}

void init_cost_model(py::module_& m) {
  py::class_<CostModelOptions>(m, "CostModelOptions")
      .def(py::init<>())
      .def_readwrite("learn", &CostModelOptions::learn)
      .def_readwrite("memory_passes", &CostModelOptions::memory_passes)
      .def_readwrite("outlier_ratio", &CostModelOptions::outlier_ratio);

  py::class_<CostModel>(
      m, "CostModel",
      "Predicts what passes take and corrects itself with every one observed. One thread.")
      .def(py::init<CostCoefficients, const CostModelOptions&>(), py::arg("start"),
           py::arg_v("options", CostModelOptions{}, "CostModelOptions()"))
      .def("predict", &CostModel::predict, py::arg("load"), "Seconds.")
      .def("observe", &CostModel::observe, py::arg("load"), py::arg("seconds"))
      .def("coefficients", &CostModel::coefficients, "As learnt so far.")
      .def_property_readonly("speed", &CostModel::speed)
      .def_property_readonly("num_observed", &CostModel::num_observed);
}

using Progress = std::optional<std::function<void(double)>>;

std::vector<CostSample> profile(const std::shared_ptr<const Model>& model, double seconds,
                                std::int32_t max_num_seqs, std::int32_t max_num_tokens,
                                std::int32_t max_drafts, std::int32_t max_context,
                                std::int32_t block_size, std::int64_t kv_memory_bytes,
                                const Progress& progress) {
  ProfileOptions options{.max_num_seqs = max_num_seqs,
                         .max_num_tokens = max_num_tokens,
                         .max_drafts = max_drafts,
                         .max_context = max_context,
                         .block_size = block_size,
                         .kv_memory_bytes = kv_memory_bytes,
                         .seconds = seconds};
  // Without a callback there is still a look for Ctrl-C now and then.
  options.progress = [&progress](double share) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (progress) (*progress)(share);
  };
  const py::gil_scoped_release release;
  return profile_model(model, options);
}

}  // namespace

void init_cost(py::module_& m) {
  init_load(m);
  init_coefficients(m);
  init_cost_model(m);
  const ProfileOptions defaults;
  m.def("profile_model", &profile, py::arg("model"), py::kw_only(),
        py::arg("seconds") = defaults.seconds, py::arg("max_num_seqs") = defaults.max_num_seqs,
        py::arg("max_num_tokens") = defaults.max_num_tokens,
        py::arg("max_drafts") = defaults.max_drafts, py::arg("max_context") = defaults.max_context,
        py::arg("block_size") = defaults.block_size,
        py::arg("kv_memory_bytes") = defaults.kv_memory_bytes, py::arg("progress") = py::none(),
        "Measures passes with random tokens for about `seconds`; `progress` gets the share spent.");
  m.def(
      "roofline_of",
      [](const Model& model, std::int32_t threads) { return roofline_of(model, threads); },
      py::arg("model"), py::arg("num_threads") = 0,
      "Estimated from the model's shape; num_threads 0: those of its runtime.");
}

}  // namespace smartspec::python
