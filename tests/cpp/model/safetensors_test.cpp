// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "model/safetensors_bytes.hpp"
#include "smartspec/error.hpp"

namespace smartspec::testing {
namespace {

std::string error_of(const std::string& bytes) {
  const std::vector<char> copy(bytes.begin(), bytes.end());  // exact size, for AddressSanitizer
  try {
    const SafetensorsFile file(copy.data(), copy.size());
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

std::string header_error(const std::string& header, std::size_t data_bytes) {
  return error_of(safetensors_bytes(header, data_bytes));
}

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& bytes)
      : path_(std::filesystem::path(::testing::TempDir()) /
              ("smartspec_" +
               std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()))) {
    std::ofstream(path_, std::ios::binary) << bytes;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  [[nodiscard]] std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

const std::string kA = tensor_json("a", "F32", "2,3", "0,24");
const std::string kB = tensor_json("b", "BF16", "4", "24,32");

TEST(Safetensors, ReadsTensorsByName) {
  const std::string bytes = safetensors_bytes(
      "{\"b\" : {\"shape\":[ 4 ],\"data_offsets\":[24 ,32],\"dtype\":\"BF16\"},"
      "\"__metadata__\":{\"format\":\"pt\"},\t\n\r" +
          kA + "}  \n",
      32);
  const SafetensorsFile file(bytes.data(), bytes.size());
  EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(file.mapping(), nullptr);
  const auto a = file.find("a");
  ASSERT_TRUE(a.has_value());
  EXPECT_EQ(a->dtype, DType::kFloat32);
  EXPECT_EQ(a->rank, 2);
  EXPECT_EQ(a->shape[0], 2);
  EXPECT_EQ(a->shape[1], 3);
  const auto b = file.find("b");
  ASSERT_TRUE(b.has_value());
  EXPECT_EQ(static_cast<const char*>(b->data) - static_cast<const char*>(a->data), 24);
  EXPECT_EQ(*static_cast<const std::uint8_t*>(b->data), 24);
  EXPECT_FALSE(file.find("c").has_value());
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_EQ(header_error("{}", 0), "");
  EXPECT_EQ(header_error("{\"__metadata__\":{}}", 0), "");
  EXPECT_EQ(header_error("{" + kB + "," + kA + "}", 32), "");  // any order
  EXPECT_EQ(header_error("{" + tensor_json("z", "F32", "0,7", "0,0") + "}", 0), "");
  EXPECT_EQ(header_error("{" + tensor_json("z", "F32", "3,0", "24,24") + "," + kA + "}", 24), "");
  EXPECT_EQ(header_error("{" + tensor_json("s", "F32", "", "0,4") + "}", 4), "");
  EXPECT_EQ(header_error("{" + tensor_json("", "U8", "1", "0,1") + "}", 1), "");
  EXPECT_EQ(header_error("{" + tensor_json("x", "F4", "3,2", "0,3") + "}", 3), "");
  EXPECT_EQ(
      header_error(
          "{" + tensor_json("\\u00e4\\ud83d\\ude00 \xc3\xa4\xf0\x9f\x98\x80", "U8", "1", "0,1") +
              "}",
          1),
      "");
}

TEST(Safetensors, ScalarsAreOneElement) {
  const std::string bytes = safetensors_bytes("{" + tensor_json("s", "F32", "", "0,4") + "}", 4);
  const SafetensorsFile file(bytes.data(), bytes.size());
  const auto view = file.find("s");
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->rank, 1);
  EXPECT_EQ(view->num_elements(), 1);
}

TEST(Safetensors, EscapedNamesAreDecoded) {
  const std::string bytes = safetensors_bytes(
      "{" + tensor_json("\\u00e4\\ud83d\\ude00\\n\\/", "U8", "1", "0,1") + "}", 1);
  const SafetensorsFile file(bytes.data(), bytes.size());
  EXPECT_EQ(file.names(), std::vector<std::string>{"\xc3\xa4\xf0\x9f\x98\x80\n/"});
  EXPECT_TRUE(file.find("\xc3\xa4\xf0\x9f\x98\x80\n/").has_value());
}

TEST(Safetensors, UnreadableTypesAndRanksAreRefusedAtFind) {
  const std::string bytes =
      safetensors_bytes("{" + tensor_json("f64", "F64", "1", "0,8") + "," +
                            tensor_json("deep", "U8", "1,1,1,1,1", "8,9") + "," +
                            tensor_json("fine", "U8", "1,1,1,1", "9,10") + "}",
                        10);
  const SafetensorsFile file(bytes.data(), bytes.size());
  EXPECT_THROW((void)file.find("f64"), FormatError);
  EXPECT_THROW((void)file.find("deep"), FormatError);
  EXPECT_EQ(file.find("fine")->rank, 4);
}

TEST(Safetensors, HeaderLength) {
  EXPECT_NE(error_of(""), "");
  EXPECT_NE(error_of("1234567"), "");
  EXPECT_NE(error_of(little_endian(0)), "");
  EXPECT_NE(error_of(little_endian(1)), "");
  EXPECT_NE(error_of(little_endian(3) + "{}"), "");
  EXPECT_NE(error_of(little_endian(100'000'001) + "{}"), "");
  EXPECT_NE(error_of(little_endian(~std::uint64_t{0}) + "{}"), "");
  EXPECT_NE(error_of(little_endian(std::uint64_t{1} << 63) + "{}"), "");
  EXPECT_EQ(error_of(little_endian(2) + "{}"), "");
  // Exactly at and above the limit of 100 MB, with the bytes really there.
  std::string large(100'000'001, ' ');
  large[0] = '{';
  large[1] = '}';
  EXPECT_NE(error_of(little_endian(large.size()) + large), "");
  large.pop_back();
  EXPECT_EQ(error_of(little_endian(large.size()) + large), "");
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string bytes = safetensors_bytes("{" + kA + "," + kB + "}", 32);
  EXPECT_EQ(error_of(bytes), "");
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_NE(error_of(bytes.substr(0, size)), "") << size;
  }
  EXPECT_NE(error_of(bytes + "x"), "");
}

TEST(Safetensors, LayoutErrorsNameTheTensor) {
  const auto refused = [](const std::string& entries, std::size_t data_bytes, const char* part) {
    const std::string error = header_error("{" + entries + "}", data_bytes);
    EXPECT_NE(error.find(part), std::string::npos) << entries << ": " << error;
  };
  const auto t = tensor_json;
  refused(kA + "," + t("o", "U8", "4", "20,24"), 24, "'o'");          // overlap
  refused(kA + "," + t("o", "U8", "24", "0,24"), 24, "overlapping");  // twice the same
  refused(kA + "," + t("h", "U8", "2", "26,28"), 28, "hole");         // hole between
  refused(t("h", "U8", "2", "1,3"), 3, "'h'");                        // hole at the start
  refused(kA, 25, "cover 24 of 25");                                  // hole at the end
  refused(t("z", "U8", "0", "9,9") + "," + kA, 24, "'z'");            // empty inside
  refused(t("p", "U8", "4", "0,4"), 3, "'p'");                        // past the end
  refused(t("p", "U8", "4", "18446744073709551612,18446744073709551615"), 3, "'p'");
  refused(t("r", "U8", "4", "4,0"), 4, "begin lies after end");
  refused(t("s", "U8", "5", "0,4"), 4, "needs 5");
  refused(t("s", "F32", "1", "0,8"), 8, "needs 4");
  refused(t("s", "F4", "1", "0,1"), 1, "does not end on a byte");
  refused(t("v", "F32", "4611686018427387904,4", "0,0"), 0, "overflows");
  refused(t("v", "F32", "4611686018427387904", "0,0"), 0, "overflows");
  refused(t("v", "U8", "18446744073709551615", "0,4"), 4, "overflows");
  refused(t("v", "U8", "4294967296,4294967296", "0,0"), 0, "overflows");
  refused(t("v", "U8", "9223372036854775808", "0,4"), 4, "overflows");
  refused(t("u", "Q4_K", "4", "0,4"), 4, "unknown dtype 'Q4_K'");
  refused(t("u", "f32", "1", "0,4"), 4, "unknown dtype");
  refused(kA + "," + kA, 24, "'a': the name appears twice");
  refused(t("a", "U8", "1", "0,1") + "," + t("\\u0061", "U8", "1", "1,2"), 2, "twice");
}

TEST(Safetensors, MalformedHeaders) {
  const std::vector<std::string> headers = {
      "",
      " ",
      "[]",
      "null",
      "{",
      "}",
      "{]",
      "{}}",
      "{} x",
      "{,}",
      "{" + kA + ",}",
      "{" + kA + "]",
      " {}",
      "{\"a\"}",
      "{\"a\":}",
      "{\"a\":1}",
      "{\"a\":null}",
      "{\"a\":{}}",
      "{a:{}}",
      "{'a':{}}",
      "{\"a\":{\"dtype\":\"F32\",\"shape\":[6]}}",
      "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,24]}}",
      "{\"a\":{\"shape\":[6],\"data_offsets\":[0,24]}}",
      "{\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,24],\"extra\":1}}",
      "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,24]}}",
      "{\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"shape\":[6],\"data_offsets\":[0,24]}}",
      "{\"a\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,24],\"data_offsets\":[0,24]}}",
      "{" + tensor_json("a", "F32", "-6", "0,24") + "}",
      "{" + tensor_json("a", "F32", "6", "-0,24") + "}",
      "{" + tensor_json("a", "F32", "6", "0") + "}",
      "{" + tensor_json("a", "F32", "6", "0,24,24") + "}",
      "{" + tensor_json("a", "F32", "6", "") + "}",
      "{" + tensor_json("a", "F32", "6,", "0,24") + "}",
      "{" + tensor_json("a", "F32", ",6", "0,24") + "}",
      "{" + tensor_json("a", "F32", "6.0", "0,24") + "}",
      "{" + tensor_json("a", "F32", "6e0", "0,24") + "}",
      "{" + tensor_json("a", "F32", "06", "0,24") + "}",
      "{" + tensor_json("a", "F32", "\"6\"", "0,24") + "}",
      "{" + tensor_json("a", "F32", "[6]", "0,24") + "}",
      "{" + tensor_json("a", "F32", "true", "0,24") + "}",
      "{" + tensor_json("a", "F32", "6", "0,18446744073709551616") + "}",
      "{" + tensor_json("a", "F32", "6", "0,99999999999999999999999999") + "}",
      "{\"__metadata__\":{\"a\":1}}",
      "{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}",
      "{\"__metadata__\":\"x\"}",
      "{\"__metadata__\":{\"a\":\"x\",\"a\":\"x\"}}",
      "{\"__metadata__\":{},\"__metadata__\":{}}",
      std::string("{\"\0\":{}}", 8),
  };
  for (const std::string& header : headers) {
    EXPECT_NE(header_error(header, 24), "") << header;
    EXPECT_NE(header_error(header, 0), "") << header;
  }
}

TEST(Safetensors, DeepNestingIsRefusedWithoutRecursion) {
  for (const char* opening : {"[", "{\"a\":"}) {
    std::string deep = "{\"a\":";
    for (int i = 0; i < 1'000'000; ++i) deep += opening;
    EXPECT_NE(header_error(deep, 0), "");
  }
}

TEST(Safetensors, TooManyDimensions) {
  std::string shape = "1";
  for (int i = 0; i < 63; ++i) shape += ",1";
  EXPECT_EQ(header_error("{" + tensor_json("a", "U8", shape, "0,1") + "}", 1), "");
  EXPECT_NE(header_error("{" + tensor_json("a", "U8", shape + ",1", "0,1") + "}", 1), "");
}

TEST(Safetensors, StringsMustBeUtf8) {
  const std::vector<std::string> bad = {"\x80",
                                        "\xbf",
                                        "\xc0\x80",
                                        "\xc1\xbf",
                                        "\xc3",
                                        "\xc3(",
                                        "\xe0\x80\x80",
                                        "\xe0\x9f\xbf",
                                        "\xed\xa0\x80",
                                        "\xe4\xb8",
                                        "\xf0\x80\x80\x80",
                                        "\xf0\x8f\xbf\xbf",
                                        "\xf4\x90\x80\x80",
                                        "\xf5\x80\x80\x80",
                                        "\xff",
                                        "\\ud800",
                                        "\\udc00",
                                        "\\ud800x",
                                        "\\ud800\\n",
                                        "\\ud800\\u0041",
                                        "\\ud800\\ud800",
                                        "\\u12",
                                        "\\u12g4",
                                        "\\x41",
                                        "\\",
                                        "\x01",
                                        "\n",
                                        "\t"};
  for (const std::string& name : bad) {
    EXPECT_NE(header_error("{" + tensor_json(name, "U8", "1", "0,1") + "}", 1), "") << name;
    EXPECT_NE(header_error("{\"__metadata__\":{\"k\":\"" + name + "\"}}", 0), "") << name;
  }
}

TEST(Safetensors, ErrorsStayShortAndPrintable) {
  const std::string name(50'000, 'n');
  const std::string error = header_error("{" + tensor_json(name, "F99", "1", "0,4") + "}", 4);
  EXPECT_NE(error, "");
  EXPECT_LT(error.size(), 400U);
  EXPECT_EQ(header_error("{" + tensor_json("a\\u0007", "F99", "1", "0,4") + "}", 4).find('\x07'),
            std::string::npos);
}

TEST(SafetensorsFiles, MappingOutlivesTheFileObject) {
  const TemporaryFile temporary(safetensors_bytes("{" + kA + "," + kB + "}", 32));
  auto file = std::make_unique<SafetensorsFile>(temporary.path());
  SafetensorsFile moved(std::move(*file));
  file.reset();
  const std::shared_ptr<void> mapping = moved.mapping();
  const TensorView view = moved.find("b").value();
  {
    const SafetensorsFile dropped(std::move(moved));
  }
  ASSERT_NE(mapping, nullptr);
  EXPECT_EQ(*static_cast<const std::uint8_t*>(view.data), 24);
}

TEST(SafetensorsFiles, BadPathsNameThePath) {
  const auto refused = [](const std::string& path) {
    try {
      const SafetensorsFile file(path);
      ADD_FAILURE() << path;
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    }
  };
  refused(::testing::TempDir() + "/smartspec-there-is-no-such-file");
  refused(std::filesystem::path(::testing::TempDir()).parent_path().string());  // a directory
  refused("/dev/null");
  const TemporaryFile empty("");
  refused(empty.path());
  EXPECT_THROW(SafetensorsFile(std::string()), FormatError);
}

TEST(SafetensorsFiles, BadContentNamesThePath) {
  const TemporaryFile cut(safetensors_bytes("{" + kA + "}", 20));
  try {
    const SafetensorsFile file(cut.path());
    ADD_FAILURE();
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(cut.path()), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("'a'"), std::string::npos);
  }
}

}  // namespace
}  // namespace smartspec::testing
