# What find_package(smartspec) and pkg-config see. Component "development"; the Python module is
# component "python", so that a wheel holds the one and a system install the other.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/smartspec)
install(TARGETS smartspec EXPORT smartspecTargets
  LIBRARY COMPONENT development NAMELINK_COMPONENT development
  ARCHIVE COMPONENT development
  RUNTIME COMPONENT development
  FILE_SET HEADERS COMPONENT development)
install(EXPORT smartspecTargets NAMESPACE smartspec:: DESTINATION ${_cmake_dir}
  COMPONENT development)

configure_package_config_file(
  ${CMAKE_CURRENT_LIST_DIR}/smartspecConfig.cmake.in ${PROJECT_BINARY_DIR}/smartspecConfig.cmake
  INSTALL_DESTINATION ${_cmake_dir})
# 0.x promises nothing across minor versions.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/smartspecConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/smartspecConfig.cmake
              ${PROJECT_BINARY_DIR}/smartspecConfigVersion.cmake
  DESTINATION ${_cmake_dir} COMPONENT development)

# From the .pc file up to the prefix, so that the installed tree can be moved.
set(SMARTSPEC_PC_TO_PREFIX /prefix)
cmake_path(RELATIVE_PATH SMARTSPEC_PC_TO_PREFIX
  BASE_DIRECTORY /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig)
get_target_property(_type smartspec TYPE)
if(_type STREQUAL "STATIC_LIBRARY")
  # A static archive brings the C++ runtime and threads with it, whatever language links it.
  set(SMARTSPEC_PC_LIBS "-lsmartspec -lstdc++ -lm -pthread")
  if(SMARTSPEC_CUDA)
    string(APPEND SMARTSPEC_PC_LIBS " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt")
  endif()
else()
  set(SMARTSPEC_PC_LIBS "-lsmartspec")
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/smartspec.pc.in ${PROJECT_BINARY_DIR}/smartspec.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/smartspec.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT development)
