// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The suffix index: NumPy arrays in and out. Every call that may wait or work runs without the GIL.
#include <pybind11/typing.h>

#include <algorithm>
#include <array>
#include <memory>

#include "integers.hpp"
#include "smartspec/suffix_index.hpp"

namespace smartspec::python {

/// A str or os.PathLike, in the file system's encoding.
struct FilePath {
  std::string name;
};

}  // namespace smartspec::python

namespace pybind11::detail {

template <>
struct type_caster<smartspec::python::FilePath> {
  PYBIND11_TYPE_CASTER(smartspec::python::FilePath, const_name("os.PathLike[str] | str"));
  bool load(handle source, bool /*convert*/) {
    PyObject* bytes = nullptr;
    if (PyUnicode_FSConverter(source.ptr(), &bytes) == 0) {
      if (PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw error_already_set();
      PyErr_Clear();
      return false;
    }
    value.name = reinterpret_steal<pybind11::bytes>(bytes);
    return true;
  }
  static handle cast(const smartspec::python::FilePath& path, return_value_policy /*policy*/,
                     handle /*parent*/) {
    return str(path.name).release();
  }
};

}  // namespace pybind11::detail

namespace smartspec::python {

namespace {

using Ids = IntegerSequence<RequestId>;
using Offsets = IntegerSequence<std::int64_t>;
using Tokens = IntegerSequence<TokenId>;
using Release = py::gil_scoped_release;

/// What does not fit is out of range for the index as well, which says what is allowed.
std::int32_t saturated(std::int64_t value) {
  using Limits = std::numeric_limits<std::int32_t>;
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(value, Limits::min(), Limits::max()));
}

float saturated(double value) {
  const double limit = std::numeric_limits<float>::max();
  return static_cast<float>(value < -limit ? -limit : value > limit ? limit : value);
}

std::size_t num_bytes(const char* name, std::int64_t value) {
  if (value < 0) {
    throw std::invalid_argument(std::string(name) + " must be >= 0, got " + std::to_string(value));
  }
  return static_cast<std::size_t>(value);
}

std::shared_ptr<SuffixIndex> make_index(std::int64_t vocab_size, std::int64_t max_bytes,
                                        std::int64_t generation_bytes, bool freeze, bool background,
                                        const std::string& tokenizer_hash) {
  const SuffixIndexOptions options{
      .vocab_size = saturated(vocab_size),
      .max_bytes = num_bytes("max_bytes", max_bytes),
      .generation_bytes = num_bytes("generation_bytes", generation_bytes),
      .freeze = freeze,
      .background = background,
      .tokenizer_hash = tokenizer_hash};
  const Release release;
  return std::make_shared<SuffixIndex>(options);
}

struct DraftArrays {
  py::array tokens, parents, survival, lengths, match_lengths;
};

/// The arrays of a draft call, the caller's or our own.
class BoundDrafts : public DraftArrays {
 public:
  explicit BoundDrafts(DraftArrays arrays) : DraftArrays(std::move(arrays)) {
    rows_ = tokens.ndim() == 2 ? tokens.shape(0) : -1;
    width_ = tokens.ndim() == 2 ? tokens.shape(1) : -1;
    view<TokenId>(tokens, "tokens", {rows_, width_});
    view<std::int32_t>(parents, "parents", {rows_, width_});
    view<float>(survival, "survival", {rows_, width_});
    view<std::int32_t>(lengths, "lengths", {rows_});
    view<std::int32_t>(match_lengths, "match_lengths", {rows_});
    for (const py::array* each : {&tokens, &parents, &survival, &lengths, &match_lengths}) {
      if (!each->writeable()) throw std::invalid_argument("SuffixDrafts: an array is read-only");
    }
  }

  static std::shared_ptr<BoundDrafts> make(std::int64_t batch_size, std::int64_t max_tokens) {
    if (batch_size < 0 || max_tokens < 1 || max_tokens > kMaxTreeNodes) {
      throw std::invalid_argument("SuffixDrafts: needs batch_size >= 0 and max_tokens in [1, " +
                                  std::to_string(kMaxTreeNodes) + "], got " +
                                  std::to_string(batch_size) + " and " +
                                  std::to_string(max_tokens));
    }
    const std::array<py::ssize_t, 2> table{batch_size, max_tokens};
    auto drafts = std::make_shared<BoundDrafts>(
        DraftArrays{.tokens = py::array_t<TokenId>(table),
                    .parents = py::array_t<std::int32_t>(table),
                    .survival = py::array_t<float>(table),
                    .lengths = py::array_t<std::int32_t>(batch_size),
                    .match_lengths = py::array_t<std::int32_t>(batch_size)});
    const SuffixDrafts all = drafts->first(batch_size, max_tokens);
    std::ranges::fill(all.tokens, -1);
    std::ranges::fill(all.parents, -1);
    std::ranges::fill(all.survival, 0.0F);
    std::ranges::fill(all.lengths, 0);
    std::ranges::fill(all.match_lengths, 0);
    return drafts;
  }

  /// Checks sizes again: an array can be resized in place after it was taken.
  SuffixDrafts first(py::ssize_t rows, std::int64_t width) {
    if (rows > rows_ || width != width_) {
      throw std::invalid_argument("out: arrays are [" + std::to_string(rows_) + ", " +
                                  std::to_string(width_) + "], must be [at least " +
                                  std::to_string(rows) + ", " + std::to_string(width) + "]");
    }
    return {.tokens = part<TokenId>(tokens, rows, width_),
            .parents = part<std::int32_t>(parents, rows, width_),
            .survival = part<float>(survival, rows, width_),
            .lengths = part<std::int32_t>(lengths, rows, 1),
            .match_lengths = part<std::int32_t>(match_lengths, rows, 1)};
  }

  [[nodiscard]] py::ssize_t rows() const { return rows_; }
  [[nodiscard]] py::ssize_t width() const { return width_; }

 private:
  template <class T>
  std::span<T> part(py::array& array, py::ssize_t rows, py::ssize_t width) const {
    if (array.size() != rows_ * width) {
      throw std::invalid_argument("out: an array was resized to " + describe(array));
    }
    return {static_cast<T*>(array.mutable_data()), static_cast<std::size_t>(rows * width)};
  }

  py::ssize_t rows_;
  py::ssize_t width_;
};

void start_request(SuffixIndex& index, RequestId id, const std::optional<Tokens>& prompt,
                   std::optional<std::int64_t> num_prompt_tokens, std::string_view name_space,
                   bool share_output, const std::optional<Tokens>& prediction) {
  if (!prompt && !num_prompt_tokens) {
    throw std::invalid_argument("start_request: needs prompt or num_prompt_tokens");
  }
  const auto fed = prompt ? integers(*prompt, "prompt") : Integers<TokenId>();
  const auto reference = prediction ? integers(*prediction, "prediction") : Integers<TokenId>();
  const auto size = static_cast<std::int64_t>(fed.values.size());
  const std::int64_t position = 0;
  const std::array<std::int64_t, 2> offsets{0, size};
  const Release release;
  index.start_request({.id = id,
                       .num_prompt_tokens = num_prompt_tokens.value_or(size),
                       .name_space = name_space,
                       .share_output = share_output,
                       .prediction = reference.values});
  if (size == 0) return;
  try {
    index.update({{&id, 1}, {&position, 1}, offsets, fed.values});
  } catch (...) {
    index.finish_request(id);
    index.forget(id);
    throw;
  }
}

void update(SuffixIndex& index, const Ids& ids, const Offsets& positions, const Offsets& offsets,
            const Tokens& tokens) {
  const auto id = integers(ids, "ids");
  const auto position = integers(positions, "positions");
  const auto offset = integers(offsets, "offsets");
  const auto token = integers(tokens, "tokens");
  const Release release;
  index.update({id.values, position.values, offset.values, token.values});
}

void extend(SuffixIndex& index, RequestId id, const Tokens& tokens) {
  const auto token = integers(tokens, "tokens");
  const std::array<std::int64_t, 2> offsets{0, static_cast<std::int64_t>(token.values.size())};
  const Release release;
  const std::int64_t position = index.num_tokens(id);
  index.update({{&id, 1}, {&position, 1}, offsets, token.values});
}

std::shared_ptr<BoundDrafts> draft(const SuffixIndex& index, const Ids& ids,
                                   std::int64_t max_tokens,
                                   const std::optional<Tokens>& max_tokens_per_request,
                                   double min_survival, std::int64_t tree_width,
                                   std::shared_ptr<BoundDrafts> out) {
  const auto id = integers(ids, "ids");
  const auto limits = max_tokens_per_request
                          ? integers(*max_tokens_per_request, "max_tokens_per_request")
                          : Integers<std::int32_t>();
  const auto rows = static_cast<py::ssize_t>(id.values.size());
  // Empty means "no limits" to the index.
  if (max_tokens_per_request && limits.values.size() != id.values.size()) {
    throw std::invalid_argument("max_tokens_per_request: must be [" + std::to_string(rows) +
                                "], got [" + std::to_string(limits.values.size()) + "]");
  }
  if (!out) out = BoundDrafts::make(rows, max_tokens);
  const SuffixDrafts arrays = out->first(rows, max_tokens);
  const Release release;
  index.draft(id.values, limits.values,
              {.max_tokens = saturated(max_tokens),
               .min_survival = saturated(min_survival),
               .tree_width = saturated(tree_width)},
              arrays);
  return out;
}

using OneDraft = py::typing::Tuple<py::typing::List<py::int_>, py::typing::List<py::int_>,
                                   py::typing::List<py::float_>, py::int_>;

template <class T>
py::list list_of(std::span<const T> values, PyObject* (*make)(T)) {
  py::list list(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    PyObject* item = make(values[i]);
    if (item == nullptr) throw py::error_already_set();
    PyList_SET_ITEM(list.ptr(), static_cast<py::ssize_t>(i), item);
  }
  return list;
}

OneDraft draft_one(const SuffixIndex& index, RequestId id, std::int64_t max_tokens,
                   double min_survival, std::int64_t tree_width) {
  std::array<TokenId, kMaxTreeNodes> tokens;
  std::array<std::int32_t, kMaxTreeNodes> parents;
  std::array<float, kMaxTreeNodes> survival;
  std::int32_t length = 0;
  std::int32_t match_length = 0;
  const auto width =
      static_cast<std::size_t>(std::clamp<std::int64_t>(max_tokens, 0, kMaxTreeNodes));
  {
    const Release release;
    index.draft({&id, 1}, {},
                {.max_tokens = saturated(max_tokens),
                 .min_survival = saturated(min_survival),
                 .tree_width = saturated(tree_width)},
                {.tokens = std::span(tokens).first(width),
                 .parents = std::span(parents).first(width),
                 .survival = std::span(survival).first(width),
                 .lengths = {&length, 1},
                 .match_lengths = {&match_length, 1}});
  }
  const auto n = static_cast<std::size_t>(length);
  const auto integer = [](std::int32_t value) { return PyLong_FromLong(value); };
  const auto number = [](float value) { return PyFloat_FromDouble(value); };
  return py::make_tuple(list_of<TokenId>(std::span(tokens).first(n), integer),
                        list_of<std::int32_t>(std::span(parents).first(n), integer),
                        list_of<float>(std::span(survival).first(n), number), match_length);
}

void preload(SuffixIndex& index, const Offsets& offsets, const Tokens& tokens,
             std::string_view name_space) {
  const auto offset = integers(offsets, "offsets");
  const auto token = integers(tokens, "tokens");
  const Release release;
  index.preload(offset.values, token.values, name_space);
}

void preload_texts(SuffixIndex& index, const py::typing::Iterable<Tokens>& texts,
                   std::string_view name_space) {
  std::vector<std::int64_t> offsets{0};
  std::vector<TokenId> tokens;
  for (const py::handle text : texts) {
    const std::string name = "texts[" + std::to_string(offsets.size() - 1) + "]";
    const auto token = integers<TokenId>(text, name.c_str());
    tokens.insert(tokens.end(), token.values.begin(), token.values.end());
    offsets.push_back(static_cast<std::int64_t>(tokens.size()));
  }
  const Release release;
  index.preload(offsets, tokens, name_space);
}

SuffixLookup lookup(const SuffixIndex& index, const Tokens& context, std::string_view name_space) {
  const auto token = integers(context, "context");
  const Release release;
  return index.lookup(token.values, name_space);
}

void init_structs(py::module_& m) {
  py::class_<SuffixIndexOptions>(m, "SuffixIndexOptions")
      .def_readonly("vocab_size", &SuffixIndexOptions::vocab_size)
      .def_readonly("max_bytes", &SuffixIndexOptions::max_bytes)
      .def_readonly("generation_bytes", &SuffixIndexOptions::generation_bytes)
      .def_readonly("freeze", &SuffixIndexOptions::freeze)
      .def_readonly("background", &SuffixIndexOptions::background)
      .def_readonly("tokenizer_hash", &SuffixIndexOptions::tokenizer_hash);

  py::class_<SuffixLookup>(m, "SuffixLookup", "What the shared history knows of a context.")
      .def_readonly("match_length", &SuffixLookup::match_length,
                    "Tokens of its longest suffix that occurs; the rest is about that suffix.")
      .def_readonly("count", &SuffixLookup::count, "Occurrences.")
      .def_readonly("best_token", &SuffixLookup::best_token,
                    "Most frequent continuation, any of equals; -1: none.")
      .def_readonly("best_count", &SuffixLookup::best_count, "Its occurrences.")
      .def("__repr__", [](const SuffixLookup& found) {
        return py::str("SuffixLookup(match_length={}, count={}, best_token={}, best_count={})")
            .format(found.match_length, found.count, found.best_token, found.best_count);
      });

  py::class_<SuffixIndexStats>(m, "SuffixIndexStats")
      .def_readonly("num_tokens", &SuffixIndexStats::num_tokens, "Of shared history.")
      .def_readonly("num_bytes", &SuffixIndexStats::num_bytes, "It takes, at most max_bytes.")
      .def_readonly("frozen_tokens", &SuffixIndexStats::frozen_tokens)
      .def_readonly("frozen_bytes", &SuffixIndexStats::frozen_bytes)
      .def_readonly("num_generations", &SuffixIndexStats::num_generations)
      .def_readonly("num_namespaces", &SuffixIndexStats::num_namespaces)
      .def_readonly("num_requests", &SuffixIndexStats::num_requests, "Active.")
      .def_readonly("request_bytes", &SuffixIndexStats::request_bytes, "Their text and index.")
      .def_readonly("evicted_tokens", &SuffixIndexStats::evicted_tokens)
      .def_readonly("drafted_tokens", &SuffixIndexStats::drafted_tokens,
                    "Of drafts followed up by later tokens.")
      .def_readonly("accepted_tokens", &SuffixIndexStats::accepted_tokens,
                    "Of those, equal to the text that came.")
      .def_readonly("expected_tokens", &SuffixIndexStats::expected_tokens,
                    "Sum of their claimed survivals.");
}

void init_drafts(py::module_& m) {
  py::class_<BoundDrafts, std::shared_ptr<BoundDrafts>>(
      m, "SuffixDrafts",
      "Drafts of a batch of B requests, at most K tokens each. Row i is valid up to lengths[i].")
      .def(py::init(&BoundDrafts::make), py::arg("batch_size"), py::arg("max_tokens") = 16,
           "Fresh arrays, to be reused with draft(out=).")
      .def_static(
          "wrap",
          [](py::array tokens, py::array parents, py::array survival, py::array lengths,
             py::array match_lengths) {
            return std::make_shared<BoundDrafts>(
                DraftArrays{std::move(tokens), std::move(parents), std::move(survival),
                            std::move(lengths), std::move(match_lengths)});
          },
          py::arg("tokens"), py::arg("parents"), py::arg("survival"), py::arg("lengths"),
          py::arg("match_lengths"), "Writes to the caller's arrays, such as pinned memory.")
      .def_readonly("tokens", &BoundDrafts::tokens, "int32 [B, K].")
      .def_readonly("parents", &BoundDrafts::parents,
                    "int32 [B, K], a column of the same row; -1: child of the last token.")
      .def_readonly("survival", &BoundDrafts::survival,
                    "float32 [B, K], probability that the whole path to here is accepted.")
      .def_readonly("lengths", &BoundDrafts::lengths, "int32 [B], tokens drafted.")
      .def_readonly("match_lengths", &BoundDrafts::match_lengths,
                    "int32 [B], tokens of context known to some source.")
      .def("__len__", &BoundDrafts::rows)
      .def("__repr__", [](const BoundDrafts& drafts) {
        return py::str("SuffixDrafts(batch_size={}, max_tokens={})")
            .format(drafts.rows(), drafts.width());
      });
}

}  // namespace

void init_suffix(py::module_& m) {
  init_structs(m);
  init_drafts(m);
  py::class_<SuffixIndex, std::shared_ptr<SuffixIndex>>(
      m, "SuffixIndex",
      "Drafts what followed the same context in the request's own text and in past outputs, each "
      "token with a calibrated probability. Any thread may call any method, one at a time for one "
      "request; arrays must not change during a call.")
      .def(py::init(&make_index), py::kw_only(), py::arg("vocab_size") = 0,
           py::arg("max_bytes") = std::int64_t{1} << 30, py::arg("generation_bytes") = 0,
           py::arg("freeze") = true, py::arg("background") = true, py::arg("tokenizer_hash") = "",
           "Token ids are in [0, vocab_size), 0: any; shared history takes at most max_bytes; see "
           "SuffixIndexOptions in suffix_index.hpp.")
      .def_property_readonly("options", &SuffixIndex::options)
      .def("start_request", &start_request, py::arg("id"), py::arg("prompt") = py::none(),
           py::kw_only(), py::arg("num_prompt_tokens") = py::none(), py::arg("name_space") = "",
           py::arg("share_output") = true, py::arg("prediction") = py::none(),
           "`prompt` is fed at once; with num_prompt_tokens alone, feed it by update(). "
           "`prediction`: text that the output may resemble.")
      .def("finish_request", &SuffixIndex::finish_request, py::arg("id"), py::call_guard<Release>(),
           "Drops its own text; its output stays in the history.")
      .def("num_tokens", &SuffixIndex::num_tokens, py::arg("id"), py::call_guard<Release>(),
           "Known of an active request: the largest position that update() may start at.")
      .def("is_active", &SuffixIndex::is_active, py::arg("id"), py::call_guard<Release>())
      .def("update", &update, py::arg("ids"), py::arg("positions"), py::arg("offsets"),
           py::arg("tokens"),
           "New verified tokens: int64 ids [B], positions [B] of each first token, offsets [B + 1] "
           "into int32 tokens. What is known already is compared and skipped.")
      .def("extend", &extend, py::arg("id"), py::arg("tokens"),
           "update() of one request, at its end.")
      .def("draft", &draft, py::arg("ids"), py::kw_only(), py::arg("max_tokens") = 16,
           py::arg("max_tokens_per_request") = py::none(), py::arg("min_survival") = 0.1,
           py::arg("tree_width") = 1, py::arg("out") = py::none(),
           "Drafts for distinct active ids [B]: tokens while their path's survival is at least "
           "min_survival; tree_width > 1: trees. `out`: arrays to reuse, [>= B, max_tokens].")
      .def("draft_one", &draft_one, py::arg("id"), py::arg("max_tokens") = 16,
           py::arg("min_survival") = 0.1, py::arg("tree_width") = 1,
           "draft() of one request as lists: tokens, parents, survival, and the match length.")
      .def("preload", &preload, py::arg("offsets"), py::arg("tokens"), py::arg("name_space") = "",
           "Adds finished texts: int64 offsets [n + 1] into int32 tokens.")
      .def("preload", &preload_texts, py::arg("texts"), py::arg("name_space") = "",
           "Adds finished texts, each a sequence of tokens.")
      .def("forget", &SuffixIndex::forget, py::arg("id"), py::call_guard<Release>(),
           "Takes a request's output out of the history; False: nothing of it is there.")
      .def("clear", &SuffixIndex::clear, py::arg("name_space") = "", py::call_guard<Release>(),
           "Drops all history of a namespace, and what was learnt in it.")
      .def("lookup", &lookup, py::arg("context"), py::arg("name_space") = "",
           "The shared history only.")
      .def("stats", &SuffixIndex::stats, py::call_guard<Release>())
      .def("wait", &SuffixIndex::wait, py::call_guard<Release>(),
           "Returns when no generation is waiting to be frozen.")
      .def(
          "save",
          [](const SuffixIndex& index, const FilePath& path) {
            const Release release;
            index.save(path.name);
          },
          py::arg("path"), "Writes history and calibration of all namespaces, atomically.")
      .def(
          "load",
          [](SuffixIndex& index, const FilePath& path) {
            const Release release;
            index.load(path.name);
          },
          py::arg("path"),
          "Replaces history and calibration; FormatError, and nothing changes, for a bad file.");
}

}  // namespace smartspec::python
