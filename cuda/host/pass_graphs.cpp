// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "host/pass_graphs.hpp"

#include "smartspec/error.hpp"

namespace smartspec::cuda {
namespace {

CapturedGraph record(CUstream_st* stream, const std::function<void()>& pass) {
  CapturedGraph::begin(stream);
  try {
    pass();
  } catch (...) {
    try {
      (void)CapturedGraph::end(stream);  // or the stream would go on recording
    } catch (const DeviceError&) {       // what pass() threw says more
    }
    throw;
  }
  return CapturedGraph::end(stream);
}

}  // namespace

void PassGraphs::run(const Signature& signature, CUstream_st* stream,
                     const std::function<void()>& pass, const std::function<void()>& again) {
  auto found = entries_.find(signature);
  if (found == entries_.end()) {
    if (entries_.size() >= kMaxEntries) entries_.clear();  // memory moved, or sizes never repeat
    found = entries_.emplace(signature, Entry{}).first;
  }
  Entry& entry = found->second;
  if (entry.state == State::kWarm) {
    try {
      entry.graph = record(stream, pass);
      entry.state = State::kRecorded;
    } catch (const DeviceError&) {
      entry.state = State::kRefused;
      again();
    }
  }
  if (entry.state == State::kRecorded) {
    entry.graph.launch(stream);
    ++num_replays_;
    return;
  }
  if (entry.state == State::kNew) entry.state = State::kWarm;
  pass();
}

}  // namespace smartspec::cuda
