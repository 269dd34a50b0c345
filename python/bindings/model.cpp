// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/model.hpp"

#include <algorithm>
#include <memory>

#include "names.hpp"
#include "weights.hpp"

namespace smartspec::python {

namespace {

/// The public header leaves Runtime incomplete, which a class_ cannot hold.
struct BoundRuntime {
  std::shared_ptr<Runtime> runtime;
};

/// Looks weights up in a mapping or a callable and collects what keeps them alive.
class Weights {
 public:
  explicit Weights(py::object source) : source_(std::move(source)) {}

  std::optional<TensorView> find(std::string_view name) {
    const py::gil_scoped_acquire gil;  // the model is built without it
    const py::str key(name.data(), name.size());
    const py::object found =
        PyCallable_Check(source_.ptr()) != 0 ? source_(key) : source_.attr("get")(key);
    if (found.is_none()) return std::nullopt;
    const BoundTensor tensor = py::isinstance<py::array>(found)
                                   ? borrow_array(py::array(found), std::nullopt)
                                   : found.cast<BoundTensor>();
    owners_->push_back(tensor.owner);
    return tensor.view;
  }
  [[nodiscard]] std::shared_ptr<void> owners() const { return owners_; }

 private:
  py::object source_;
  std::shared_ptr<std::vector<std::shared_ptr<void>>> owners_ =
      std::make_shared<std::vector<std::shared_ptr<void>>>();
};

std::shared_ptr<Model> model_from_tensors(const BoundRuntime& runtime, const ModelConfig& config,
                                          py::object source,
                                          const std::optional<std::string>& dtype) {
  Weights weights(std::move(source));
  const ModelOptions options{.dtype = weight_dtype(dtype), .keep_alive = weights.owners()};
  const py::gil_scoped_release release;
  return std::make_shared<Model>(
      runtime.runtime, config, [&](std::string_view name) { return weights.find(name); }, options);
}

py::array_t<float> logits_of(const std::shared_ptr<Model>& model, const TokenIds& tokens) {
  std::vector<float> logits;
  {
    const py::gil_scoped_release release;
    logits = forward_logits(model, tokens.ids);
  }
  py::array_t<float> out(std::vector<py::ssize_t>{static_cast<py::ssize_t>(tokens.ids.size()),
                                                  model->config().vocab_size});
  std::copy(logits.begin(), logits.end(), out.mutable_data());
  return out;
}

void init_config(py::module_& m) {
  py::class_<RopeScaling> scaling(m, "RopeScaling", "Long-context scaling of rotary embeddings.");
  py::enum_<RopeScaling::Type>(scaling, "Type")
      .value("none", RopeScaling::Type::kNone)
      .value("linear", RopeScaling::Type::kLinear)
      .value("llama3", RopeScaling::Type::kLlama3);
  scaling.def(py::init<>())
      .def_readwrite("type", &RopeScaling::type)
      .def_readwrite("factor", &RopeScaling::factor)
      .def_readwrite("low_freq_factor", &RopeScaling::low_freq_factor)
      .def_readwrite("high_freq_factor", &RopeScaling::high_freq_factor)
      .def_readwrite("original_max_position_embeddings",
                     &RopeScaling::original_max_position_embeddings);

  py::class_<ModelConfig>(m, "ModelConfig", "Shape of a Llama-family model; config.json's names.")
      .def(py::init<>())
      .def_readwrite("vocab_size", &ModelConfig::vocab_size)
      .def_readwrite("hidden_size", &ModelConfig::hidden_size)
      .def_readwrite("intermediate_size", &ModelConfig::intermediate_size)
      .def_readwrite("num_hidden_layers", &ModelConfig::num_hidden_layers)
      .def_readwrite("num_attention_heads", &ModelConfig::num_attention_heads)
      .def_readwrite("num_key_value_heads", &ModelConfig::num_key_value_heads)
      .def_readwrite("head_dim", &ModelConfig::head_dim)
      .def_readwrite("max_position_embeddings", &ModelConfig::max_position_embeddings)
      .def_readwrite("rms_norm_eps", &ModelConfig::rms_norm_eps)
      .def_readwrite("rope_theta", &ModelConfig::rope_theta)
      .def_readwrite("rope_scaling", &ModelConfig::rope_scaling)
      .def_readwrite("sliding_window", &ModelConfig::sliding_window)
      .def_readwrite("max_window_layers", &ModelConfig::max_window_layers)
      .def_readwrite("attention_bias", &ModelConfig::attention_bias)
      .def_readwrite("attention_output_bias", &ModelConfig::attention_output_bias)
      .def_readwrite("mlp_bias", &ModelConfig::mlp_bias)
      .def_readwrite("qk_norm", &ModelConfig::qk_norm)
      .def_readwrite("tie_word_embeddings", &ModelConfig::tie_word_embeddings)
      .def("validate", &ModelConfig::validate, "Raises FormatError naming the field.");
}

}  // namespace

void init_model(py::module_& m) {
  init_config(m);
  py::class_<BoundRuntime>(m, "Runtime", "One device with its threads; models may share it.")
      .def_property_readonly("isa_name",
                             [](const BoundRuntime& self) { return isa_name(*self.runtime); })
      .def_property_readonly("num_threads",
                             [](const BoundRuntime& self) { return num_threads(*self.runtime); });
  m.def(
      "make_runtime",
      [](const std::string& device, std::int32_t threads) {
        return BoundRuntime{make_runtime(parse_device(device), threads)};
      },
      py::arg("device") = "cpu", py::arg("num_threads") = 0,
      py::call_guard<py::gil_scoped_release>(),
      "num_threads 0 takes the cores this process may run on.");
  m.def(
      "is_available", [](const std::string& device) { return is_available(parse_device(device)); },
      py::arg("device"));
  m.def(
      "isa_name", [](const BoundRuntime& self) { return isa_name(*self.runtime); },
      py::arg("runtime"));

  py::class_<Model, std::shared_ptr<Model>>(m, "Model", "Weights packed for a device; immutable.")
      .def_static(
          "from_tensors", &model_from_tensors, py::arg("runtime"), py::arg("config"),
          py::arg("source"), py::arg("dtype") = py::none(),
          "`source` maps a Hugging Face weight name to a Tensor or a NumPy array: a mapping, "
          "or a callable that returns None where there is none.")
      .def_property_readonly("config", [](const Model& self) { return self.config(); })
      .def_property_readonly("dtype", [](const Model& self) { return name_of(self.dtype()); })
      .def_property_readonly("num_parameters", &Model::num_parameters)
      .def_property_readonly("isa_name",
                             [](const Model& self) { return isa_name(*self.runtime()); })
      .def_property_readonly("num_threads",
                             [](const Model& self) { return num_threads(*self.runtime()); })
      .def(
          "bytes_per_kv_token",
          [](const Model& self, const std::optional<std::string>& dtype) {
            return self.bytes_per_kv_token(weight_dtype(dtype).value_or(self.dtype()));
          },
          py::arg("kv_dtype") = py::none())
      .def("forward_logits", &logits_of, py::arg("token_ids"),
           "For tests and debugging: float32 logits [len(token_ids), vocab_size] of one sequence.");
}

}  // namespace smartspec::python
