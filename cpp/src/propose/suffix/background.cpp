// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "propose/suffix/index_impl.hpp"

namespace smartspec {

Background::~Background() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Background::run(std::function<void()> job) {
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
  }
  changed_.notify_all();
}

void Background::wait(std::size_t num_pending) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return jobs_.size() + num_running_ <= num_pending; });
}

// What is left when the index goes is not worth doing.
void Background::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return is_stopping_ || !jobs_.empty(); });
    if (is_stopping_) return;
    std::function<void()> job = std::move(jobs_.front());
    jobs_.erase(jobs_.begin());
    num_running_ = 1;
    lock.unlock();
    job();
    job = nullptr;  // what it holds may take a while to free
    lock.lock();
    num_running_ = 0;
    changed_.notify_all();
  }
}

}  // namespace smartspec
