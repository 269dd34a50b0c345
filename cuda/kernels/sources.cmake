# Kernels and the host files that launch them, for nvcc and for the emulation: sets
# SMARTSPEC_CUDA_SOURCES and SMARTSPEC_CUDA_GENERATED, a folder to be included.

# The only list of head dims that tree attention has tensor-core kernels for. Each costs some
# seconds of compilation per kind of cache and architecture.
set(SMARTSPEC_HEAD_DIMS 64 80 96 128 256)

file(GLOB_RECURSE SMARTSPEC_CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cu
  ${CMAKE_CURRENT_LIST_DIR}/*.cpp)
set(SMARTSPEC_CUDA_GENERATED ${CMAKE_CURRENT_BINARY_DIR}/generated)
set(_templates ${CMAKE_CURRENT_LIST_DIR}/tree_attention)
set(_instances ${SMARTSPEC_CUDA_GENERATED}/tree_attention)
foreach(SMARTSPEC_HEAD_DIM IN LISTS SMARTSPEC_HEAD_DIMS)
  foreach(SMARTSPEC_KIND kBFloat16 kFloat16 kE4M3 kBytes)
    set(_file ${_instances}/tensor_${SMARTSPEC_HEAD_DIM}_${SMARTSPEC_KIND}.cu)
    configure_file(${_templates}/tensor_inst.cu.in ${_file} @ONLY)
    list(APPEND SMARTSPEC_CUDA_SOURCES ${_file})
  endforeach()
endforeach()
list(TRANSFORM SMARTSPEC_HEAD_DIMS REPLACE "(.+)" "X(\\1)" OUTPUT_VARIABLE _calls)
list(JOIN _calls " " SMARTSPEC_HEAD_DIM_CALLS)
configure_file(${_templates}/tensor_head_dims.h.in ${_instances}/tensor_head_dims.h @ONLY)
