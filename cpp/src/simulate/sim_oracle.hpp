// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The policy that knows the world it is in: the bound other policies are measured against.
#pragma once

#include <memory>

#include "simulate/sim_drafts.hpp"
#include "simulate/sim_requests.hpp"
#include "smartspec/length_policy.hpp"

namespace smartspec::sim {

/// Maximises the goodput of every step by the true acceptance of what could be drafted and the true
/// cost of drafting and verifying it. It does not know the draws. Borrows both arguments.
std::shared_ptr<LengthPolicy> make_oracle(World& world, RequestPool& pool, double overhead);

}  // namespace smartspec::sim
