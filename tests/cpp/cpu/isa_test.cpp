// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The choice of kernels: best by default, SMARTSPEC_ISA forces a lesser one, nonsense is an error.
#include <cstdlib>

#include "cpu/cpu_test_util.hpp"
#include "smartspec/error.hpp"

namespace smartspec {
namespace {

/// Sets SMARTSPEC_ISA for one scope.
class ForcedIsa {
 public:
  explicit ForcedIsa(const char* value) {
    const char* old = std::getenv("SMARTSPEC_ISA");
    had_ = old != nullptr;
    if (had_) old_ = old;
    setenv("SMARTSPEC_ISA", value, 1);
  }
  ~ForcedIsa() {
    if (had_) {
      setenv("SMARTSPEC_ISA", old_.c_str(), 1);
    } else {
      unsetenv("SMARTSPEC_ISA");
    }
  }

 private:
  bool had_ = false;
  std::string old_;
};

TEST(Isa, DefaultIsTheBest) {
  const ForcedIsa none("");
  const auto names = cpu::supported_isas();
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names.back(), "generic");
  EXPECT_EQ(make_cpu_backend(1)->isa_name(), names.front());
}

TEST(Isa, EnvironmentForcesALesserOne) {
  for (const std::string& name : test::isa_names()) {
    const ForcedIsa forced(name.c_str());
    EXPECT_EQ(make_cpu_backend(1)->isa_name(), name);
  }
}

TEST(Isa, UnknownNamesAreErrorsThatListTheAllowed) {
  const ForcedIsa forced("sse9");
  try {
    (void)make_cpu_backend(1);
    FAIL() << "accepted";
  } catch (const DeviceError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("SMARTSPEC_ISA"), std::string::npos) << text;
    EXPECT_NE(text.find("sse9"), std::string::npos) << text;
    EXPECT_NE(text.find("generic"), std::string::npos) << text;
  }
  EXPECT_THROW((void)cpu::make_cpu_backend(1, "neon"), DeviceError);
}

TEST(Isa, BuffersAreAlignedAndZero) {
  const auto backend = make_cpu_backend(1);
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{1000}, std::size_t{3} << 20}) {
    const Buffer buffer = backend->allocate(bytes);
    ASSERT_EQ(buffer.size(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0U);
    const auto* data = buffer.as<unsigned char>();
    for (std::size_t i = 0; i < bytes; i += 97) ASSERT_EQ(data[i], 0);
  }
}

}  // namespace
}  // namespace smartspec
