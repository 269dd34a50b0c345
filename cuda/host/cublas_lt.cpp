// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "host/cublas_lt.hpp"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "host/staging.hpp"
#include "smartspec/error.hpp"

namespace smartspec::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;  // what Hopper's kernels ask for
constexpr std::size_t kMaxRemembered = 4096;                    // shapes

/// The functions we call, by their own types.
struct Api {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;

  bool load(void* library) {
    const auto find = [&](auto& function, const char* name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
      return function != nullptr;
    };
    return find(create, "cublasLtCreate") && find(destroy, "cublasLtDestroy") &&
           find(desc_create, "cublasLtMatmulDescCreate") &&
           find(desc_destroy, "cublasLtMatmulDescDestroy") &&
           find(desc_set, "cublasLtMatmulDescSetAttribute") &&
           find(layout_create, "cublasLtMatrixLayoutCreate") &&
           find(layout_destroy, "cublasLtMatrixLayoutDestroy") &&
           find(preference_create, "cublasLtMatmulPreferenceCreate") &&
           find(preference_destroy, "cublasLtMatmulPreferenceDestroy") &&
           find(preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
           find(heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(matmul, "cublasLtMatmul");
  }
};

/// Folder of the shared object that this code lies in; empty when it cannot be told.
std::string own_folder() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&load_cublas_lt), &info) == 0 ||
      info.dli_fname == nullptr) {
    return {};
  }
  const std::string file = info.dli_fname;
  const std::size_t slash = file.rfind('/');
  return slash == std::string::npos ? std::string(".") : file.substr(0, slash);
}

std::vector<std::string> candidates() {
  if (const char* file = std::getenv("SMARTSPEC_CUBLASLT"); file != nullptr && *file != '\0') {
    return {file};
  }
  const std::string mine = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  const std::string packages = own_folder() + "/../nvidia/";
  return {mine,
          packages + "cu13/lib/libcublasLt.so.13",
          packages + "cublas/lib/" + mine,
          "/usr/local/cuda/lib64/" + mine,
          "libcublasLt.so.13",
          "libcublasLt.so.12",
          packages + "cublas/lib/libcublasLt.so.12"};
}

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError(std::string(what) + ": cuBLAS status " + std::to_string(status));
}

/// Largest power of two up to 256 that divides the address.
std::uint32_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer) | 256U;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

/// What a choice of algorithm depends on.
using Shape = std::tuple<DType, std::int32_t, std::int32_t, std::int32_t, std::int64_t,
                         std::int64_t, bool, bool, std::uint32_t, std::uint32_t>;

Shape shape_of(const MatmulProblem& p) {
  return {p.dtype,      p.rows,       p.in_features,     p.out_features,     p.in_stride,
          p.out_stride, p.accumulate, p.bias != nullptr, alignment_of(p.in), alignment_of(p.out)};
}

class LoadedCublasLt final : public CublasLt {
 public:
  LoadedCublasLt(const Api& api, cublasLtHandle_t handle)
      : api_(api), handle_(handle), workspace_(allocate_buffer(kWorkspaceBytes)) {}
  ~LoadedCublasLt() override {
    plans_.clear();
    (void)api_.destroy(handle_);
  }
  LoadedCublasLt(const LoadedCublasLt&) = delete;
  LoadedCublasLt& operator=(const LoadedCublasLt&) = delete;

  bool multiply(const MatmulProblem& p, CUstream_st* stream) override {
    const Shape shape = shape_of(p);
    auto found = plans_.find(shape);
    if (found == plans_.end()) {
      if (plans_.size() >= kMaxRemembered) plans_.clear();
      found = plans_.emplace(shape, std::make_unique<Plan>(api_)).first;
      prepare(*found->second, p);
    }
    Plan& plan = *found->second;
    if (!plan.has_algorithm) return false;
    if (p.bias != nullptr) {
      check(
          api_.desc_set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p.bias, sizeof(p.bias)),
          "cublasLtMatmulDescSetAttribute");
    }
    const float alpha = 1.0F;
    const float beta = p.accumulate ? 1.0F : 0.0F;
    check(api_.matmul(handle_, plan.operation, &alpha, p.weight, plan.weight, p.in, plan.in, &beta,
                      p.out, plan.out, p.out, plan.out, &plan.algorithm, workspace_.data(),
                      kWorkspaceBytes, reinterpret_cast<cudaStream_t>(stream)),
          "cublasLtMatmul");
    return true;
  }

 private:
  struct Plan {
    explicit Plan(const Api& functions) : api(functions) {}
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;
    ~Plan() {
      if (operation != nullptr) (void)api.desc_destroy(operation);
      for (const cublasLtMatrixLayout_t layout : {weight, in, out}) {
        if (layout != nullptr) (void)api.layout_destroy(layout);
      }
    }
    const Api& api;
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t weight = nullptr;
    cublasLtMatrixLayout_t in = nullptr;
    cublasLtMatrixLayout_t out = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
    bool has_algorithm = false;
  };

  // cuBLAS thinks in columns: our row-major out [rows, out_features] is its [out_features, rows],
  // so out = weight^T in, with weight [in_features, out_features] and in [in_features, rows].
  void prepare(Plan& plan, const MatmulProblem& p) {
    const cudaDataType_t type = p.dtype == DType::kBFloat16 ? CUDA_R_16BF : CUDA_R_32F;
    check(api_.desc_create(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
          "cublasLtMatmulDescCreate");
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
      check(api_.desc_set(plan.operation, attribute, &value, sizeof(value)),
            "cublasLtMatmulDescSetAttribute");
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (p.bias != nullptr) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_32F);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    }
    const auto layout = [&](cublasLtMatrixLayout_t& made, cudaDataType_t element, std::int32_t rows,
                            std::int32_t columns, std::int64_t stride) {
      check(api_.layout_create(&made, element, static_cast<std::uint64_t>(rows),
                               static_cast<std::uint64_t>(columns), stride),
            "cublasLtMatrixLayoutCreate");
    };
    layout(plan.weight, type, p.in_features, p.out_features, p.in_features);
    layout(plan.in, type, p.in_features, p.rows, p.in_stride);
    layout(plan.out, CUDA_R_32F, p.out_features, p.rows, p.out_stride);
    choose_algorithm(plan, p);
  }

  void choose_algorithm(Plan& plan, const MatmulProblem& p) {
    cublasLtMatmulPreference_t preference = nullptr;
    check(api_.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      (void)api_.preference_set(preference, attribute, &value, sizeof(value));
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.weight));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.in));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(p.out));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.out));
    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    const cublasStatus_t status =
        api_.heuristic(handle_, plan.operation, plan.weight, plan.in, plan.out, plan.out,
                       preference, 1, &result, &count);
    (void)api_.preference_destroy(preference);
    plan.has_algorithm = status == CUBLAS_STATUS_SUCCESS && count == 1;
    plan.algorithm = result.algo;
  }

  Api api_;
  cublasLtHandle_t handle_;
  Buffer workspace_;
  std::map<Shape, std::unique_ptr<Plan>> plans_;
};

}  // namespace

std::unique_ptr<CublasLt> load_cublas_lt() {
  for (const std::string& name : candidates()) {
    // Never closed: the library keeps threads and handles of its own.
    void* library = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) continue;
    Api api;
    cublasLtHandle_t handle = nullptr;
    if (api.load(library) && api.create(&handle) == CUBLAS_STATUS_SUCCESS) {
      return std::make_unique<LoadedCublasLt>(api, handle);
    }
  }
  return nullptr;
}

bool has_cublas_lt() noexcept { return true; }

}  // namespace smartspec::cuda
