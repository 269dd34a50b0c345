// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Everything is read and checked before anything of the index is changed.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <system_error>
#include <utility>

#include "propose/suffix/file_format.hpp"
#include "propose/suffix/index_impl.hpp"
#include "smartspec/error.hpp"

namespace smartspec {
namespace {

using suffix::Arena;
using suffix::FileReader;
using suffix::FileSection;
using suffix::Generation;
using suffix::History;
using suffix::RequestState;
using suffix::SectionKind;
using suffix::SuffixAutomaton;

constexpr int kThreads = 2;
constexpr std::size_t kMapFrom = std::size_t{1} << 20;
constexpr std::size_t kReserveFrom = std::size_t{1} << 20;
constexpr std::size_t kBytesPerToken = 58;

struct FrozenArrays {
  Arena<TokenId> text;
  Arena<std::uint32_t> order;
};

/// Takes the sections one after the other; the grammar stands in file_format.hpp.
class IndexReader {
 public:
  IndexReader(const FileReader& file, const SuffixIndexOptions& options)
      : file_(file), options_(options) {
    const TokenId vocab_size =
        options.vocab_size > 0 ? options.vocab_size : file.header().vocab_size;
    token_limit_ = vocab_size > 0 ? vocab_size : 0x7FFFFFFF;
  }

  /// Generations' ids are their ranks by age.
  std::vector<std::unique_ptr<History>> read() {
    std::vector<std::unique_ptr<History>> histories;
    seen_.resize(std::min<std::size_t>(file_.header().num_generations, file_.sections().size()));
    while (next_ < file_.sections().size()) {
      histories.push_back(read_history(static_cast<std::uint32_t>(histories.size())));
    }
    if (histories.size() != file_.header().num_namespaces) {
      reject("num_namespaces is " + std::to_string(file_.header().num_namespaces) + ", must be " +
             std::to_string(histories.size()) + " as in the table");
    }
    if (num_generations_ != file_.header().num_generations) {
      reject("num_generations is " + std::to_string(file_.header().num_generations) + ", must be " +
             std::to_string(num_generations_) + " as in the table");
    }
    return histories;
  }

 private:
  [[noreturn]] static void reject(const std::string& what) { throw FormatError(what); }

  [[nodiscard]] bool follows(SectionKind kind) const {
    return next_ < file_.sections().size() && file_.sections()[next_].kind == kind;
  }

  const FileSection& take(SectionKind kind, std::uint32_t name_space, std::uint32_t generation) {
    const std::string wanted = std::string(name_of(kind)) + " of namespace " +
                               std::to_string(name_space) + ", generation " +
                               std::to_string(generation);
    if (next_ == file_.sections().size()) reject("section " + wanted + " is missing");
    const FileSection& section = file_.sections()[next_];
    if (section.kind != kind || section.name_space != name_space ||
        section.generation != generation || section.zero != 0) {
      reject("section " + std::to_string(next_) + " is " + name_of(section.kind) +
             " of namespace " + std::to_string(section.name_space) + ", generation " +
             std::to_string(section.generation) + ", must be " + wanted);
    }
    ++next_;
    return section;
  }

  template <class T>
  static std::size_t count(const FileSection& section) {
    if (section.bytes % sizeof(T) == 0) return section.bytes / sizeof(T);
    reject(std::string(name_of(section.kind)) + " is " + std::to_string(section.bytes) +
           " bytes, must be a multiple of " + std::to_string(sizeof(T)));
  }

  /// A copy, with room for `reserve` elements. Of what will be changed everywhere, as counts are,
  /// that costs a fifth of copying page by page later, and huge pages hold it.
  template <class T>
  Arena<T> copy(const FileSection& section, std::size_t reserve = 0) const {
    const std::size_t size = count<T>(section);
    Arena<T> arena;
    if (section.bytes >= kReserveFrom) arena.reserve(std::max(size, reserve));
    if (size > 0) arena.extend(size);
    file_.load(section, std::as_writable_bytes(std::span(arena.data(), size)));
    return arena;
  }

  /// The file's own pages, of which processes share one copy. Small sections are copied: mapping
  /// each would use up what the system has of mappings.
  template <class T>
  Arena<T> map(const FileSection& section) const {
    if (section.bytes < kMapFrom) return copy<T>(section);
    const std::size_t size = count<T>(section);
    auto arena = Arena<T>::map_file(file_.file(), section.offset, size, size);
#ifdef MADV_POPULATE_READ
    // Faster than page by page; where it is refused, that is what happens.
    (void)::madvise(arena.data(), section.bytes, MADV_POPULATE_READ);
#endif
    file_.verify(section, std::as_bytes(arena.span()));
    return arena;
  }

  std::unique_ptr<History> read_history(std::uint32_t number) {
    auto history = std::make_unique<History>();
    const Arena<char> name = copy<char>(take(SectionKind::kName, number, 0));
    history->name.assign(name.data(), name.size());
    const Arena<std::byte> calibration =
        copy<std::byte>(take(SectionKind::kCalibration, number, 0));
    history->calibration = suffix::Calibration::from_state(calibration.span());
    bool is_live = false;
    while (follows(SectionKind::kStates) || follows(SectionKind::kFrozenText)) {
      const std::uint32_t rank = file_.sections()[next_].generation;
      if (rank >= seen_.size() || seen_[rank] ||
          (!history->generations.empty() && rank < history->generations.back()->id)) {
        reject("generation " + std::to_string(rank) + " of namespace " + std::to_string(number) +
               " must be below num_generations, occur once, and follow older ones");
      }
      seen_[rank] = true;
      ++num_generations_;
      is_live = follows(SectionKind::kStates);
      history->generations.push_back(is_live ? read_automaton(number, rank)
                                             : read_frozen(number, rank));
    }
    if (!is_live) reject("namespace " + std::to_string(number) + " must end with an automaton");
    return history;
  }

  std::shared_ptr<Generation> read_automaton(std::uint32_t number, std::uint32_t rank) {
    auto generation = std::make_shared<Generation>();
    generation->id = rank;
    const FileSection& states = take(SectionKind::kStates, number, rank);
    const FileSection& edges = take(SectionKind::kEdges, number, rank);
    const FileSection& summary_section = take(SectionKind::kSummary, number, rank);
    // Only a live generation grows, and only one below the bound stays live.
    const bool grows =
        !follows_generation(number) && states.bytes + edges.bytes < options_.generation_bytes;
    const std::size_t room = grows ? options_.generation_bytes / kBytesPerToken : 0;
    SuffixAutomaton::Summary summary;
    if (summary_section.bytes != sizeof(summary)) {
      reject("summary is " + std::to_string(summary_section.bytes) + " bytes, must be " +
             std::to_string(sizeof(summary)));
    }
    const auto summary_bytes = copy<std::byte>(summary_section);
    std::memcpy(&summary, summary_bytes.data(), sizeof(summary));
    generation->automaton = SuffixAutomaton::adopt(copy<suffix::State>(states, 2 * room),
                                                   copy<suffix::Edge>(edges, 2 * room), summary,
                                                   kThreads, token_limit_);
    read_sequences(*generation, number, room);
    return generation;
  }

  /// Behind the two sections that end an automaton, is there another generation of the namespace?
  [[nodiscard]] bool follows_generation(std::uint32_t number) const {
    const std::size_t at = next_ + 2;
    return at < file_.sections().size() && file_.sections()[at].name_space == number;
  }

  void read_sequences(Generation& generation, std::uint32_t number, std::size_t room) {
    const auto rank = static_cast<std::uint32_t>(generation.id);
    auto text = copy<TokenId>(take(SectionKind::kSequenceText, number, rank), room);
    const auto lengths = copy<std::uint32_t>(take(SectionKind::kSequenceLengths, number, rank));
    check_tokens(text.span(), 0);
    std::uint64_t size = 0;
    for (const std::uint32_t length : lengths.span()) size += length;
    if (size != text.size() || size > generation.automaton.num_tokens()) {
      reject("sequence lengths sum to " + std::to_string(size) + ", must be the text's " +
             std::to_string(text.size()) + " and at most the automaton's " +
             std::to_string(generation.automaton.num_tokens()) + " tokens");
    }
    generation.sequences = suffix::SequenceStore::adopt(std::move(text), lengths.span());
  }

  std::shared_ptr<Generation> read_frozen(std::uint32_t number, std::uint32_t rank) {
    auto generation = std::make_shared<Generation>();
    generation->id = rank;
    auto arrays = std::make_shared<FrozenArrays>();
    arrays->text = map<TokenId>(take(SectionKind::kFrozenText, number, rank));
    arrays->order = map<std::uint32_t>(take(SectionKind::kFrozenOrder, number, rank));
    check_tokens(arrays->text.span(), suffix::kSeparator);
    const auto text = arrays->text.span();
    const auto order = std::as_const(arrays->order).span();
    generation->frozen = suffix::FrozenSegment::view(text, order, std::move(arrays));
    return generation;
  }

  void check_tokens(std::span<const TokenId> tokens, TokenId lowest) const {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] >= lowest && tokens[i] < token_limit_) continue;
      reject("token " + std::to_string(i) + " of a text is " + std::to_string(tokens[i]) +
             ", must be in [" + std::to_string(lowest) + ", " + std::to_string(token_limit_) + ")");
    }
  }

  const FileReader& file_;
  const SuffixIndexOptions& options_;
  TokenId token_limit_ = 0;
  std::size_t next_ = 0;
  std::uint32_t num_generations_ = 0;
  std::vector<bool> seen_;  // by rank
};

std::vector<std::unique_ptr<History>> read_index(const std::string& path,
                                                 const SuffixIndexOptions& options) {
  try {
    const FileReader file(path, options);
    return IndexReader(file, options).read();
  } catch (const FormatError& error) {
    throw FormatError(path + ": " + error.what());
  } catch (const Error& error) {
    throw Error(path + ": " + error.what());
  } catch (const std::system_error& error) {
    throw Error(path + ": " + error.what());
  }
}

}  // namespace

void SuffixIndex::load(const std::string& path) {
  std::vector<std::unique_ptr<History>> read = read_index(path, impl_->options);
  Impl::Histories loaded;
  for (std::unique_ptr<History>& history : read) {
    const std::string name = history->name;
    if (!loaded.emplace(name, std::move(history)).second) {
      throw FormatError(path + ": namespace '" + name + "' occurs twice");
    }
  }
  const std::lock_guard writing(impl_->writer);
  auto retired = std::make_shared<Impl::Histories>();
  {
    const std::lock_guard changing(impl_->gate);
    impl_->replace(std::move(loaded), *retired);
  }
  impl_->discard(std::move(retired));
}

/// Nothing changes if this throws: memory may run out.
void SuffixIndex::Impl::replace(Histories loaded, Histories& retired) {
  std::uint64_t end = next_generation;
  for (const auto& [name, history] : loaded) {
    for (const auto& generation : history->generations) {
      generation->id += next_generation;
      end = std::max(end, generation->id + 1);
    }
  }
  std::vector<std::pair<RequestState*, History*>> moves;
  next_generation = end;
  requests.for_each([&](RequestState& state) {
    auto& history = loaded[state.history->name];
    if (history == nullptr) {
      history = std::make_unique<History>();
      history->name = state.history->name;
      history->generations.push_back(new_generation());
    }
    moves.emplace_back(&state, history.get());
  });
  for (const auto& [name, history] : histories) {
    for (const auto& generation : history->generations) generation->is_dropped = true;
  }
  retired = std::exchange(histories, std::move(loaded));
  places.clear();
  for (const auto& [state, history] : moves) {
    state->history = history;
    leave_generation(*state);
    state->older.clear();
    state->pending.position = -1;
  }
  for (const auto& [name, history] : histories) {
    const std::size_t sealed = history->generations.size() - 1;
    for (std::size_t i = 0; i < sealed && options.freeze; ++i) {
      if (!history->generations[i]->frozen) freeze(history->generations[i]);
    }
    seal_if_full(*history);
  }
  evict_to_bound();
}

}  // namespace smartspec
