// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "python_proposer.hpp"

#include "smartspec/error.hpp"

namespace smartspec::python {

namespace {

OwnedRequest own(const ProposeRequest& r) {
  return {r.id,
          py::array_t<TokenId>(static_cast<py::ssize_t>(r.tokens.size()), r.tokens.data()),
          r.num_prompt_tokens,
          r.max_depth,
          r.max_nodes,
          r.seed,
          r.sampling != nullptr ? *r.sampling : SamplingParams{},
          r.cache_salt,
          py::array_t<TokenId>(static_cast<py::ssize_t>(r.prediction.size()), r.prediction.data()),
          r.min_survival,
          r.claims};
}

[[noreturn]] void rethrow(const std::string& where, py::error_already_set& error) {
  // Ctrl-C must not drown in a counter: deliver it again to the main thread.
  if (error.matches(PyExc_KeyboardInterrupt)) PyErr_SetInterrupt();
  throw Error(where + ": " + error.what());
}

TokenTree to_tree(const py::handle& item) {
  if (item.is_none()) return {};
  if (py::isinstance<TokenTree>(item)) return item.cast<TokenTree>();
  return TokenTree::chain(token_ids(item));
}

}  // namespace

std::string_view PythonProposer::name() const {
  const py::gil_scoped_acquire gil;
  if (name_.empty()) {
    const py::object self = py::cast(static_cast<const Proposer*>(this));
    name_ = py::str(py::type::of(self).attr("__name__")).cast<std::string>();
  }
  return name_;
}

void PythonProposer::propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) {
  const py::gil_scoped_acquire gil;
  try {
    const py::function method = method_named("propose");
    if (!method) throw Error("the Python class does not define it");
    py::list shown;
    for (const ProposeRequest& request : requests) shown.append(own(request));
    const py::object result = method(shown);
    if (!py::isinstance<py::sequence>(result) || py::len(result) != requests.size()) {
      throw Error("must return a list of " + std::to_string(requests.size()) +
                  " entries, one per request, got " +
                  py::repr(result).cast<std::string>().substr(0, 80));
    }
    for (std::size_t i = 0; i < trees.size(); ++i) {
      trees[i] = to_tree(py::object(result[py::int_(i)]));
    }
  } catch (py::error_already_set& error) {
    rethrow("Proposer.propose", error);
  } catch (const std::exception& error) {
    throw Error(std::string("Proposer.propose: ") + error.what());
  }
}

void PythonProposer::observe(std::span<const Outcome> outcomes) {
  const py::gil_scoped_acquire gil;
  try {
    const py::function method = method_named("observe");
    if (!method) return;
    py::list shown;
    for (const Outcome& o : outcomes) {
      shown.append(OwnedOutcome{o.id,
                                o.tree != nullptr ? *o.tree : TokenTree{},
                                {o.accepted_path.begin(), o.accepted_path.end()},
                                {o.emitted.begin(), o.emitted.end()}});
    }
    method(shown);
  } catch (py::error_already_set& error) {
    rethrow("Proposer.observe", error);
  }
}

void PythonProposer::finish(RequestId id) {
  const py::gil_scoped_acquire gil;
  try {
    if (const py::function method = method_named("finish")) method(id);
  } catch (py::error_already_set& error) {
    rethrow("Proposer.finish", error);
  }
}

bool PythonProposer::pays_per_depth() const {
  const py::gil_scoped_acquire gil;
  if (!pays_per_depth_) {
    try {
      const py::object self = py::cast(static_cast<const Proposer*>(this));
      pays_per_depth_ = py::bool_(py::getattr(self, "pays_per_depth", py::bool_(false)));
    } catch (py::error_already_set& error) {
      rethrow("Proposer.pays_per_depth", error);
    }
  }
  return *pays_per_depth_;
}

py::function PythonProposer::method_named(const char* name) const {
  return py::get_override(static_cast<const Proposer*>(this), name);
}

}  // namespace smartspec::python
