// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "propose/suffix/calibration.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "smartspec/error.hpp"

namespace smartspec::suffix {
namespace {

// Evidence is described by a cell: source, rank within the source, match length, and how often
// the context occurred and was followed by the token.
constexpr int kSources = 3, kRanks = 3, kSlots = kSources * kRanks;
constexpr int kLengths = 10, kShares = 8, kCounts = 46;
constexpr int kCells = kLengths * kCounts;
constexpr int kGroups = 5;
constexpr int kWeightSets = 64, kRuns = 16;
constexpr int kLengthPairs = (kLengths + 1) * (kLengths + 1) * 4;
constexpr int kSharePairs = (kShares + 1) * (kShares + 1) * 4;
constexpr int kMaps = 32, kKnots = 33;

constexpr float kLogitLimit = 8;
constexpr float kCellLimit = 250, kPairLimit = 250, kMapLimit = 500;
constexpr float kLowest = 0.0005F, kHighest = 0.9995F;
constexpr float kWeightLimit = 8, kWeightCountLimit = 1e6F;
constexpr std::uint32_t kMagic = 0x6C616353;  // "Scal"
constexpr std::uint32_t kVersion = 1;

constexpr double exponential(double x) {
  double term = 1, sum = 1;
  for (int i = 1; i < 20; ++i) sum += term *= x / 16 / i;
  for (int i = 0; i < 4; ++i) sum *= sum;
  return sum;
}

// The logistic function every 1/16, for linear interpolation: within 5e-5 on the clamped range.
constexpr int kPerUnit = 16, kPoints = 16 * kPerUnit + 1;
constexpr std::array<float, kPoints> kSquash = [] {
  std::array<float, kPoints> values{};
  for (std::size_t i = 0; i < kPoints; ++i) {
    const double x = static_cast<double>(i) / kPerUnit - kLogitLimit;
    values[i] = static_cast<float>(1 / (1 + exponential(-x)));
  }
  return values;
}();

float squash(float x) {
  const float at = (x + kLogitLimit) * kPerUnit;
  const int i = std::min(static_cast<int>(at), kPoints - 2);
  const float* value = &kSquash[static_cast<std::size_t>(i)];
  return value[0] + (at - static_cast<float>(i)) * (value[1] - value[0]);
}

/// ln(p / (1 - p)) within 1e-4, for p in [kLowest, kHighest]; the inverse of squash().
float stretch(float p) {
  const auto bits = std::bit_cast<std::uint32_t>(p / (1 - p));
  const auto exponent = static_cast<float>(static_cast<int>(bits >> 23) - 127);
  const float m = std::bit_cast<float>((bits & 0x7FFFFF) | 0x3F800000);
  // Chebyshev fit of ln on [1, 2).
  const float mantissa =
      ((((0.03044900F * m - 0.28382685F) * m + 1.11609003F) * m - 2.44002976F) * m + 3.51408730F) *
          m -
      1.93675974F;
  return exponent * 0.69314718F + mantissa;
}

// Bucket bounds, inclusive; one bucket more above the last.
constexpr std::uint32_t kLengthBounds[] = {1, 2, 3, 5, 8, 12, 20, 40, 100};
constexpr std::uint32_t kCountBounds[] = {1, 2, 3, 5, 9, 20, 100};

template <std::size_t N>
constexpr std::array<std::uint8_t, 128> bucket_table(const std::uint32_t (&bounds)[N]) {
  std::array<std::uint8_t, 128> table{};
  for (std::uint32_t n = 0; n < 128; ++n) {
    while (table[n] < N && n > bounds[table[n]]) ++table[n];
  }
  return table;
}
constexpr auto kLengthBucket = bucket_table(kLengthBounds);
constexpr auto kCountBucket = bucket_table(kCountBounds);

// Counts of 1, 2 and 3 have an entry for each number of hits, longer ones for each share.
constexpr int kCountBase[8] = {0, 1, 3, 6, 14, 22, 30, 38};
constexpr std::array<std::uint8_t, kCounts> kShareOf = [] {
  std::array<std::uint8_t, kCounts> table = {7, 3, 7, 2, 4, 7};
  for (std::size_t i = 6; i < kCounts; ++i) table[i] = (i - 6) % kShares;
  return table;
}();

// One piece of evidence in 14 bits: slot, length bucket, count and share.
constexpr int kSlotShift = 10, kLengthShift = 6, kCountMask = 63, kLengthMask = 15;

std::uint16_t describe(const Evidence& e, int slot) {
  const std::uint32_t part = std::max(e.token_count, 1U);
  const std::uint32_t whole = e.deterministic ? part : std::max(e.count, part);
  const int bucket = kCountBucket[std::min(whole, 127U)];
  // Without branches, which would be hard to predict; the last share only for the whole.
  const auto share =
      static_cast<int>(static_cast<float>(part) / static_cast<float>(whole) * (kShares - 1));
  const int few = static_cast<int>(std::min(part, 3U)) - 1;
  const int sub = kCountBase[bucket] + (bucket < 3 ? few : share);
  const int length = kLengthBucket[std::min(e.match_length, 127U)];
  return static_cast<std::uint16_t>(slot << kSlotShift | length << kLengthShift | sub);
}

// A piece of evidence taken apart again.
struct Piece {
  explicit Piece(std::uint16_t code)
      : slot(code >> kSlotShift),
        length(code >> kLengthShift & kLengthMask),
        sub(code & kCountMask),
        cell(length * kCounts + sub) {}
  int slot, length, sub, cell;
};

// {own text, live} x {longest match, shorter ones}, frozen
constexpr std::uint8_t kGroupOf[kSlots] = {0, 1, 1, 2, 3, 3, 4, 4, 4};
// Which bit of a weight set says that a piece of this slot names the candidate.
constexpr std::uint8_t kSetBit[kSlots] = {1, 2, 2, 4, 8, 8, 16, 32, 32};

struct Cell {
  float probability;
  float logit;
  float count;
};

struct Correction {
  float logit;
  float count;
};

struct Weights {
  float slot[kSlots][2];  // [does the evidence name another token or this]
  float bias;
  float count;
};

struct Knot {
  float probability;
  float count;
};

}  // namespace

struct Calibration::Tables {
  std::uint32_t magic, version;
  Cell cells[kGroups][kCells][2];
  Weights weights[kWeightSets];
  Correction lengths[kLengthPairs];
  Correction shares[kSharePairs];
  Correction runs[kRuns];
  Knot maps[kMaps][kKnots];
};

struct Calibration::MapPoint {
  int map, knot;
  float part;
};

struct Calibration::Candidate {
  TokenId token;
  std::uint16_t support;  // which pieces of evidence name it
  std::uint8_t set, map;
  std::uint16_t lengths, shares;
  float logit;
};

namespace {

/// Prior logit of a cell, fitted on code: constant, then per ln(match length), per log odds of the
/// share, per ln(count), and where the context had no other successor.
struct CellPrior {
  float constant, length, odds, count, sole;
};

// [group][does the evidence name another token or this]
constexpr CellPrior kCellPriors[kGroups][2] = {
    {{-0.9F, -0.39F, 0.08F, -0.16F, -1.4F}, {-1.8F, 0.59F, 0.82F, 0.14F, 1.0F}},
    {{-0.4F, -0.11F, 0.04F, -0.12F, -2.5F}, {-1.2F, 0.26F, 0.77F, 0.09F, 1.6F}},
    {{-0.9F, -0.28F, 0.1F, 0.06F, -1.3F}, {-2.3F, 0.7F, 0.76F, 0.18F, 0.8F}},
    {{0.0F, -0.3F, 0.13F, -0.14F, -2.2F}, {-1.2F, 0.39F, 0.7F, 0.05F, 1.5F}},
    {{-0.9F, -0.28F, 0.1F, 0.06F, -1.3F}, {-2.3F, 0.7F, 0.76F, 0.18F, 0.8F}}};
constexpr float kWeightPriors[kSlots][2] = {{0.48F, 0.48F}, {0.25F, 0.35F}, {0.15F, 0.2F},
                                            {0.5F, 0.57F},  {0.15F, 0.33F}, {0.1F, 0.2F},
                                            {0.5F, 0.7F},   {0.15F, 0.33F}, {0.1F, 0.2F}};
constexpr float kTypicalLength[kLengths] = {1, 2, 3, 4.5F, 7, 10, 16, 30, 65, 150};
constexpr float kTypicalCount[8] = {1, 2, 3, 4.5F, 7, 14, 45, 300};

float cell_prior(const CellPrior& prior, int cell) {
  const int sub = cell % kCounts;
  const auto bucket = std::upper_bound(kCountBase, kCountBase + 8, sub) - kCountBase - 1;
  const float whole = kTypicalCount[bucket];
  const auto share_of = static_cast<float>(kShareOf[static_cast<std::size_t>(sub)]);
  const float share = share_of >= kShares - 1 ? 1 : (share_of + 0.5F) / (kShares - 1);
  const float part = bucket < 3 ? static_cast<float>(sub - kCountBase[bucket] + 1) : share * whole;
  const float z = prior.constant + prior.length * std::log(kTypicalLength[cell / kCounts]) +
                  prior.odds * std::log((part + 0.5F) / (whole - part + 0.5F)) +
                  prior.count * std::log(whole) + (share == 1 ? prior.sole : 0);
  return std::clamp(1 / (1 + std::exp(-z)), 0.01F, 0.99F);
}

/// `pair`: buckets of own and shared length (0: none) and whether they name the candidate.
float length_prior(int pair) {
  const bool own_names = (pair & 2) != 0, shared_names = (pair & 1) != 0;
  const int own = pair / 4 / (kLengths + 1), shared = pair / 4 % (kLengths + 1);
  if (own == 0 || shared == 0) return 0;
  const auto ahead = static_cast<float>(own - shared);
  if (own_names && shared_names) {
    // Equal lengths: mostly the same text, found twice, as live outputs hold this request's too.
    return own == shared && own >= 5 ? -0.8F : 0.3F;
  }
  if (own_names) return 0.1F + 0.12F * ahead;
  return shared_names ? -0.2F - 0.12F * ahead : 0;
}

}  // namespace

Calibration::Calibration() : tables_(std::make_unique<Tables>()) {
  Tables& t = *tables_;
  t.magic = kMagic;
  t.version = kVersion;
  for (int group = 0; group < kGroups; ++group) {
    for (int i = 0; i < kCells; ++i) {
      for (int names = 0; names < 2; ++names) {
        const float p = cell_prior(kCellPriors[group][names], i);
        t.cells[group][i][names] = {p, stretch(p), 4};
      }
    }
  }
  for (int set = 0; set < kWeightSets; ++set) {
    Weights& w = t.weights[set];
    std::copy(&kWeightPriors[0][0], &kWeightPriors[0][0] + 2 * kSlots, &w.slot[0][0]);
    const int support = std::popcount(static_cast<unsigned>(set));
    w.bias = support <= 1 ? -0.45F : support == 2 ? 0.1F : 0.4F;
    w.count = 0;
  }
  for (int i = 0; i < kLengthPairs; ++i) t.lengths[i] = {length_prior(i), 0};
  for (int i = 0; i < kRuns; ++i) t.runs[i] = {std::min(0.08F * static_cast<float>(i), 0.3F), 0};
  for (auto& map : t.maps) {
    for (int i = 0; i < kKnots; ++i) {
      map[i] = {squash(static_cast<float>(i - kKnots / 2) / 2), 0};
    }
  }
}

Calibration::Calibration(const Calibration& other)
    : tables_(std::make_unique<Tables>(*other.tables_)) {}
Calibration& Calibration::operator=(const Calibration& other) {
  *tables_ = *other.tables_;
  return *this;
}
Calibration::~Calibration() = default;

int Calibration::score(const Trace& trace, Candidates candidates) const {
  const Tables& t = *tables_;
  const int n = trace.size;
  int slot[kMaxEvidence];
  unsigned set_bit[kMaxEvidence];
  const Cell* cell[kMaxEvidence];
  int size = 0;
  unsigned own = 0, shared = 0;  // bit of the longest match
  int own_length = 0, shared_length = 0, own_share = 0, shared_share = 0;
  for (int i = 0; i < n; ++i) {
    const Piece piece(trace.cell[static_cast<std::size_t>(i)]);
    slot[i] = piece.slot;
    cell[i] = t.cells[kGroupOf[piece.slot]][piece.cell];
    const int share = 1 + kShareOf[static_cast<std::size_t>(piece.sub)];
    if (piece.slot == 0) {
      own = 1U << i, own_length = 1 + piece.length, own_share = share;
    } else if (piece.slot % kRanks == 0 && 1 + piece.length > shared_length) {
      shared = 1U << i, shared_length = 1 + piece.length, shared_share = share;
    }
    set_bit[i] = kSetBit[piece.slot];
  }
  for (int i = 0; i < n; ++i) {
    const TokenId token = trace.token[static_cast<std::size_t>(i)];
    unsigned support = 0;
    unsigned set = 0;
    for (int j = 0; j < n; ++j) {
      const bool same = trace.token[static_cast<std::size_t>(j)] == token;
      support |= static_cast<unsigned>(same) << j;
      set |= same ? set_bit[j] : 0U;
    }
    if ((support & ((1U << i) - 1)) != 0) continue;  // met before
    Candidate& candidate = candidates[static_cast<std::size_t>(size++)];
    candidate.token = token;
    candidate.support = static_cast<std::uint16_t>(support);
    candidate.set = static_cast<std::uint8_t>(set);
  }
  const int lengths = (own_length * (kLengths + 1) + shared_length) * 4;
  const int shares = (own_share * (kShares + 1) + shared_share) * 4;
  const float run = t.runs[trace.run].logit;
  for (int c = 0; c < size; ++c) {
    Candidate& x = candidates[static_cast<std::size_t>(c)];
    const Weights& w = t.weights[x.set];
    float z = w.bias + run;
    for (int i = 0; i < n; ++i) {
      const unsigned names = x.support >> i & 1U;
      z += w.slot[slot[i]][names] * cell[i][names].logit;
    }
    const int pattern = ((x.support & own) != 0 ? 2 : 0) + ((x.support & shared) != 0 ? 1 : 0);
    x.lengths = static_cast<std::uint16_t>(lengths + pattern);
    x.shares = static_cast<std::uint16_t>(shares + pattern);
    z += t.lengths[x.lengths].logit + t.shares[x.shares].logit;
    x.logit = std::clamp(z, -kLogitLimit, kLogitLimit);
    x.map = static_cast<std::uint8_t>(pattern + (own != 0 ? 4 : 0) + (shared != 0 ? 8 : 0));
  }
  return size;
}

/// Where the final map of the k-th pick is read: the map is chosen by who names the first pick,
/// for further ones by how sure the first is.
Calibration::MapPoint Calibration::map_point(int rank, const Candidate& first, const Candidate& x) {
  const float at = (x.logit + kLogitLimit) * 2;
  const int knot = std::min(static_cast<int>(at), kKnots - 2);
  const int sure = std::clamp(static_cast<int>(first.logit + 4), 0, 7);
  const int map = rank == 0 ? first.map : rank == 1 ? 16 + sure : 24 + sure;
  return {map, knot, at - static_cast<float>(knot)};
}

/// The k-th best, moved to its place; the first of equals stays the first.
const Calibration::Candidate& Calibration::bring_best(Candidates candidates, int k, int n) {
  auto best = static_cast<std::size_t>(k);
  for (auto c = best + 1; c < static_cast<std::size_t>(n); ++c) {
    if (candidates[c].logit > candidates[best].logit) best = c;
  }
  std::swap(candidates[static_cast<std::size_t>(k)], candidates[best]);
  return candidates[static_cast<std::size_t>(k)];
}

int Calibration::choose(std::span<const Evidence> evidence, const NodeContext& node,
                        const RequestCalibration& request, std::span<Pick> picks,
                        Trace& trace) const {
  std::uint8_t size = 0;
  int of_source[kSources] = {};
  for (const Evidence& e : evidence) {
    const int source = std::min<int>(static_cast<int>(e.source), kSources - 1);
    if (size == kMaxEvidence || of_source[source] == kRanks) continue;
    trace.token[size] = e.token;
    trace.cell[size] = describe(e, source * kRanks + of_source[source]++);
    ++size;
  }
  const auto depth = static_cast<std::uint32_t>(std::clamp(node.depth, 0, kRuns));
  const auto run = std::min<std::uint32_t>(request.run, kRuns) + depth;
  const auto wanted = static_cast<std::uint8_t>(std::min<std::size_t>(picks.size(), kMaxPicks));
  trace.size = size;
  trace.picks = wanted;
  trace.run = static_cast<std::uint8_t>(std::min(run, kRuns - 1U));

  std::array<Candidate, kMaxEvidence> candidates;
  const int n = std::min<int>(score(trace, candidates), kMaxEvidence);
  float left = 1, ceiling = 0.999F;
  int k = 0;
  for (; k < std::min<int>(wanted, n) && left >= 0.002F; ++k) {
    const Candidate& x = bring_best(candidates, k, n);
    const MapPoint m = map_point(k, candidates[0], x);
    const Knot* knots = &tables_->maps[m.map][m.knot];
    const float mapped = knots[0].probability * (1 - m.part) + knots[1].probability * m.part;
    ceiling = std::min(ceiling, left - 0.0005F);
    const float p = std::clamp((mapped + squash(x.logit)) / 2, 0.001F, ceiling);
    picks[static_cast<std::size_t>(k)] = {x.token, p};
    left -= p;
    ceiling = p;
  }
  return k;
}

void Calibration::learn(const Trace& trace, TokenId truth, RequestCalibration& request) {
  std::array<Candidate, kMaxEvidence> candidates;
  const int n = score(trace, candidates);
  for (int k = 0; k < std::min<int>(trace.picks, n); ++k) {
    const Candidate& x = bring_best(candidates, k, n);
    learn_map(map_point(k, candidates[0], x), x.token == truth);
  }
  const bool right = n > 0 && bring_best(candidates, 0, n).token == truth;
  request.run = right ? std::min(request.run, 1U << 20) + 1 : 0;
  // Weights first: their inputs are the cells as they were.
  for (int c = 0; c < n; ++c) {
    const Candidate& x = candidates[static_cast<std::size_t>(c)];
    learn_weights(trace, x, (x.token == truth ? 1.0F : 0.0F) - squash(x.logit));
  }
  for (int c = 0; c < n; ++c) {
    const Candidate& x = candidates[static_cast<std::size_t>(c)];
    learn_cells(trace, x, x.token == truth);
  }
}

void Calibration::learn_map(const MapPoint& point, bool hit) {
  for (int side = 0; side < 2; ++side) {
    Knot& knot = tables_->maps[point.map][point.knot + side];
    const float weight = side == 1 ? point.part : 1 - point.part;
    knot.count = std::min(knot.count + weight, kMapLimit);
    knot.probability += weight * ((hit ? 1.0F : 0.0F) - knot.probability) / (knot.count + 12);
  }
}

void Calibration::learn_weights(const Trace& trace, const Candidate& x, float error) {
  const auto correct = [error](Correction& c) {
    c.count = std::min(c.count + 1, kPairLimit);
    c.logit = std::clamp(c.logit + error / (c.count / 4 + 4), -kLogitLimit, kLogitLimit);
  };
  Tables& t = *tables_;
  correct(t.lengths[x.lengths]);
  correct(t.shares[x.shares]);
  correct(t.runs[trace.run]);
  Weights& w = t.weights[x.set];
  w.count = std::min(w.count + 1, kWeightCountLimit);
  const float rate = std::max(0.03F / std::sqrt(1 + w.count / 64), 0.004F);
  for (int i = 0; i < trace.size; ++i) {
    const Piece piece(trace.cell[static_cast<std::size_t>(i)]);
    const unsigned names = x.support >> i & 1U;
    float& weight = w.slot[piece.slot][names];
    const float input = t.cells[kGroupOf[piece.slot]][piece.cell][names].logit;
    weight = std::clamp(weight + rate * error * input, -kWeightLimit, kWeightLimit);
  }
  w.bias = std::clamp(w.bias + rate * error, -kWeightLimit, kWeightLimit);
}

void Calibration::learn_cells(const Trace& trace, const Candidate& x, bool hit) {
  for (int i = 0; i < trace.size; ++i) {
    const Piece piece(trace.cell[static_cast<std::size_t>(i)]);
    Cell& cell = tables_->cells[kGroupOf[piece.slot]][piece.cell][x.support >> i & 1U];
    cell.count = std::min(cell.count + 1, kCellLimit);
    const float step = ((hit ? 1.0F : 0.0F) - cell.probability) / (cell.count + 0.5F);
    cell.probability = std::clamp(cell.probability + step, kLowest, kHighest);
    cell.logit = stretch(cell.probability);
  }
}

std::span<const std::byte> Calibration::state() const {
  return std::as_bytes(std::span<const Tables>(tables_.get(), 1));
}

Calibration Calibration::from_state(std::span<const std::byte> bytes) {
  const auto expect = [](bool good, const char* what) {
    if (!good) throw FormatError(std::string("calibration: ") + what);
  };
  if (bytes.size() != sizeof(Tables)) {
    throw FormatError("calibration: size is " + std::to_string(bytes.size()) + " bytes, expected " +
                      std::to_string(sizeof(Tables)));
  }
  Calibration calibration;
  Tables& t = *calibration.tables_;
  std::memcpy(&t, bytes.data(), sizeof(Tables));
  expect(t.magic == kMagic, "magic number is wrong");
  expect(t.version == kVersion, "version is not 1");
  // Comparisons are false for NaN.
  const auto within = [](float x, float low, float high) { return x >= low && x <= high; };
  for (auto& group : t.cells) {
    for (auto& pair : group) {
      for (Cell& cell : pair) {
        expect(within(cell.probability, kLowest, kHighest) && within(cell.count, 0, kCellLimit),
               "a cell's probability or count is out of range");
        expect(within(cell.logit, -kLogitLimit, kLogitLimit), "a cell's logit is out of range");
      }
    }
  }
  for (const Weights& w : t.weights) {
    bool good =
        within(w.bias, -kWeightLimit, kWeightLimit) && within(w.count, 0, kWeightCountLimit);
    for (const auto& slot : w.slot) {
      for (const float x : slot) good = good && within(x, -kWeightLimit, kWeightLimit);
    }
    expect(good, "a weight is out of range");
  }
  const auto check = [&](std::span<const Correction> corrections) {
    for (const Correction& c : corrections) {
      expect(within(c.logit, -kLogitLimit, kLogitLimit) && within(c.count, 0, kPairLimit),
             "a correction is out of range");
    }
  };
  check(t.lengths);
  check(t.shares);
  check(t.runs);
  for (const auto& map : t.maps) {
    for (const Knot& knot : map) {
      expect(within(knot.probability, 0, 1) && within(knot.count, 0, kMapLimit),
             "a knot of a final map is out of range");
    }
  }
  return calibration;
}

}  // namespace smartspec::suffix
