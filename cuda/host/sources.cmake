# Host files that need nothing of the CUDA toolkit: the tests link them with an emulated runtime.
set(SMARTSPEC_CUDA_HOST_SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/attention_plan.cpp
  ${CMAKE_CURRENT_LIST_DIR}/cuda_backend.cpp
  ${CMAKE_CURRENT_LIST_DIR}/linear.cpp
  ${CMAKE_CURRENT_LIST_DIR}/pass_graphs.cpp
  ${CMAKE_CURRENT_LIST_DIR}/register.cpp
  ${CMAKE_CURRENT_LIST_DIR}/staging.cpp
  ${CMAKE_CURRENT_LIST_DIR}/tree_walker.cpp)
