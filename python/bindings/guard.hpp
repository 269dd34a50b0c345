// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// One call at a time into an object that is not thread-safe, without the GIL.
#pragma once

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "views.hpp"

namespace smartspec::python {

struct CallGuard {
  std::mutex mutex;
  std::atomic<std::thread::id> owner;
};

/// Releases the GIL, then waits its turn. A call from inside a call (a Python proposer that uses
/// its own engine) would wait for itself, so it throws std::invalid_argument.
class ExclusiveCall {
 public:
  explicit ExclusiveCall(CallGuard& guard) : guard_(guard) {
    if (guard_.owner.load() == std::this_thread::get_id()) {
      throw std::invalid_argument("the engine was called from inside its own step()");
    }
    lock_ = std::unique_lock(guard_.mutex);
    guard_.owner.store(std::this_thread::get_id());
  }
  ~ExclusiveCall() { guard_.owner.store(std::thread::id()); }
  ExclusiveCall(const ExclusiveCall&) = delete;
  ExclusiveCall& operator=(const ExclusiveCall&) = delete;

 private:
  py::gil_scoped_release release_;
  CallGuard& guard_;
  std::unique_lock<std::mutex> lock_;
};

}  // namespace smartspec::python
