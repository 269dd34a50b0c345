// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The errors SmartSpec throws. Misuse by the caller is std::invalid_argument (ValueError in
// Python); exhausted resources are empty optionals or false, never exceptions.
#pragma once

#include <stdexcept>
#include <string>

#include "smartspec/export.hpp"

namespace smartspec {

/// Base of all errors that are not the caller's misuse.
class SMARTSPEC_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A file or a configuration is malformed: the text names the field, the value and what is allowed.
class SMARTSPEC_API FormatError : public Error {
 public:
  using Error::Error;
};

/// A device is missing or refused an operation.
class SMARTSPEC_API DeviceError : public Error {
 public:
  using Error::Error;
};

}  // namespace smartspec
