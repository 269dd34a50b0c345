// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "propose/suffix/file_format.hpp"
#include "propose/suffix/image.hpp"
#include "propose/suffix/index_impl.hpp"

namespace smartspec {
namespace {

using suffix::FileWriter;
using suffix::Generation;
using suffix::History;
using suffix::RequestState;
using suffix::SectionKind;
using suffix::SuffixAutomaton;

constexpr std::size_t kSectionsOfNamespace = 2;
constexpr std::size_t kSectionsOfAutomaton = 5;
constexpr std::size_t kSectionsOfFrozen = 2;

using Texts = std::vector<std::span<const TokenId>>;

/// Writes the sections of one generation after the other.
class GenerationWriter {
 public:
  GenerationWriter(FileWriter& file, std::uint32_t name_space, std::uint32_t generation)
      : file_(file), name_space_(name_space), generation_(generation) {}

  /// `growing`: outputs that are not finished and thus not among the sequences yet.
  void write(const Generation& generation, const Texts& growing) {
    if (generation.frozen) {
      write_frozen(*generation.frozen);
    } else {
      write_automaton(generation.automaton);
      write_sequences(generation, growing);
    }
  }

 private:
  template <class T>
  void add(SectionKind kind, std::span<const T> elements) {
    file_.add(kind, name_space_, generation_, std::as_bytes(elements));
  }

  void write_automaton(const SuffixAutomaton& automaton) {
    const suffix::AutomatonImage image = image_of(automaton);
    add(SectionKind::kStates, image.states.span());
    add(SectionKind::kEdges, image.edges.span());
    add(SectionKind::kSummary, std::span(&image.summary, 1));
  }

  void write_sequences(const Generation& generation, const Texts& growing) {
    Texts texts = generation.sequences.all();
    for (const std::uint32_t forgotten : generation.forgotten) texts[forgotten] = {};
    texts.insert(texts.end(), growing.begin(), growing.end());
    std::erase_if(texts, [](std::span<const TokenId> text) { return text.empty(); });
    std::vector<TokenId> joined;
    std::vector<std::uint32_t> lengths;
    std::size_t size = 0;
    for (const auto& text : texts) size += text.size();
    joined.reserve(size);
    for (const auto& text : texts) {
      joined.insert(joined.end(), text.begin(), text.end());
      lengths.push_back(static_cast<std::uint32_t>(text.size()));
    }
    add<TokenId>(SectionKind::kSequenceText, joined);
    add<std::uint32_t>(SectionKind::kSequenceLengths, lengths);
  }

  void write_frozen(const suffix::FrozenSegment& segment) {
    const bool has_forgotten = segment.num_live_tokens() < segment.num_tokens();
    suffix::FrozenImage image;
    if (has_forgotten) image = image_of(segment);
    add<TokenId>(SectionKind::kFrozenText, has_forgotten ? image.text : segment.text());
    add<std::uint32_t>(SectionKind::kFrozenOrder, has_forgotten ? image.order : segment.order());
  }

  FileWriter& file_;
  std::uint32_t name_space_;
  std::uint32_t generation_;
};

Texts growing_outputs(const suffix::RequestTable& requests, const History& history) {
  std::vector<const RequestState*> states;
  requests.for_each([&](const RequestState& state) {
    if (state.history == &history && state.generation == history.live().id) {
      states.push_back(&state);
    }
  });
  std::sort(states.begin(), states.end(),
            [](const RequestState* a, const RequestState* b) { return a->id < b->id; });
  Texts texts;
  for (const RequestState* state : states) {
    texts.push_back(std::span<const TokenId>(state->text).last(state->live_length));
  }
  return texts;
}

}  // namespace

/// The caller holds `writer`; drafts go on.
void SuffixIndex::Impl::write(const std::string& path, std::unique_ptr<FileWriter>& file) const {
  std::size_t num_sections = 0;
  std::vector<std::uint64_t> ages;
  for (const auto& [name, history] : histories) {
    num_sections += kSectionsOfNamespace;
    for (const auto& generation : history->generations) {
      num_sections += generation->frozen ? kSectionsOfFrozen : kSectionsOfAutomaton;
      ages.push_back(generation->id);
    }
  }
  std::sort(ages.begin(), ages.end());
  file = std::make_unique<FileWriter>(path, num_sections);
  std::uint32_t number = 0;
  for (const auto& [name, history] : histories) {
    file->add(SectionKind::kName, number, 0, std::as_bytes(std::span(name)));
    file->add(SectionKind::kCalibration, number, 0, history->calibration.state());
    const Texts growing = growing_outputs(requests, *history);
    for (const auto& generation : history->generations) {
      const auto rank = std::lower_bound(ages.begin(), ages.end(), generation->id) - ages.begin();
      const bool is_live = generation == history->generations.back();
      GenerationWriter(*file, number, static_cast<std::uint32_t>(rank))
          .write(*generation, is_live ? growing : Texts());
    }
    ++number;
  }
  suffix::FileHeader header;
  header.num_namespaces = number;
  header.num_generations = static_cast<std::uint32_t>(ages.size());
  header.vocab_size = options.vocab_size;
  header.tokenizer_hash_size = static_cast<std::uint32_t>(options.tokenizer_hash.size());
  std::copy(options.tokenizer_hash.begin(), options.tokenizer_hash.end(),
            header.tokenizer_hash.begin());
  file->finish(header);
}

void SuffixIndex::save(const std::string& path) const {
  std::unique_ptr<FileWriter> file;
  {
    const std::lock_guard writing(impl_->writer);
    {
      const std::lock_guard changing(impl_->gate);
      for (const auto& [name, history] : impl_->histories) history->live().automaton.settle();
    }
    impl_->write(path, file);
  }
  file->commit();  // without the lock: the disk may take seconds
}

}  // namespace smartspec
