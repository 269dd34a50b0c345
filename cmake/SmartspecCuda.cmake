# Finds nvcc and chooses architectures: included where SMARTSPEC_CUDA is on. CMake itself looks in
# CUDACXX and PATH only.
if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(_smartspec_nvcc nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATH_SUFFIXES bin
    PATHS /usr/local/cuda/bin)
  if(_smartspec_nvcc)
    set(CMAKE_CUDA_COMPILER ${_smartspec_nvcc} CACHE FILEPATH "CUDA compiler")
  endif()
endif()
# CMake would fill in its own default; remember whether the user said something.
if(DEFINED CMAKE_CUDA_ARCHITECTURES OR DEFINED ENV{CUDAARCHS})
  option(SMARTSPEC_CUDA_OWN_ARCHITECTURES "CMAKE_CUDA_ARCHITECTURES is the user's" ON)
else()
  option(SMARTSPEC_CUDA_OWN_ARCHITECTURES "CMAKE_CUDA_ARCHITECTURES is the user's" OFF)
endif()
mark_as_advanced(SMARTSPEC_CUDA_OWN_ARCHITECTURES)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

if(NOT SMARTSPEC_CUDA_OWN_ARCHITECTURES)
  # Machine code for the data-centre parts, and PTX of the newest of them for what comes later.
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE _known)
  if(_known MATCHES "compute_100")
    set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real;100")
  else()
    set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real;90-virtual")
  endif()
endif()
