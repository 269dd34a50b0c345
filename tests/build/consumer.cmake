# Installs the library of LIBRARY_BUILD into a fresh prefix, then builds and runs tests/consumer
# against it. MODE: find_package, pkg_config, or shared (a shared library of its own, both ways).
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(CONSUMER ${SOURCE}/tests/consumer)
if(MODE STREQUAL "shared")
  set(LIBRARY_BUILD ${WORK}/library)
  run(${CMAKE_COMMAND} -S ${SOURCE} -B ${LIBRARY_BUILD} -G ${GENERATOR}
    -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O0
    -DBUILD_SHARED_LIBS=ON -DSMARTSPEC_TESTS=OFF)
  run(${CMAKE_COMMAND} --build ${LIBRARY_BUILD})
endif()

set(prefix ${WORK}/prefix)
file(REMOVE_RECURSE ${prefix} ${WORK}/consumer)
run(${CMAKE_COMMAND} --install ${LIBRARY_BUILD} --prefix ${prefix} --component development)

if(NOT MODE STREQUAL "pkg_config")
  run(${CMAKE_COMMAND} -S ${CONSUMER} -B ${WORK}/consumer -G ${GENERATOR}
    -DCMAKE_CXX_COMPILER=${COMPILER} -Dsmartspec_ROOT=${prefix})
  run(${CMAKE_COMMAND} --build ${WORK}/consumer)
  run(${WORK}/consumer/consumer)
endif()

if(NOT MODE STREQUAL "find_package")
  find_program(PKG_CONFIG NAMES pkg-config pkgconf REQUIRED)
  file(GLOB_RECURSE pc ${prefix}/*/smartspec.pc)
  cmake_path(GET pc PARENT_PATH pc_dir)
  execute_process(COMMAND ${CMAKE_COMMAND} -E env PKG_CONFIG_PATH=${pc_dir}
      ${PKG_CONFIG} --cflags --libs smartspec
    OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags UNIX_COMMAND "${flags}")
  run(${COMPILER} ${CONSUMER}/main.cpp -o ${WORK}/by_pkg_config ${flags})
  cmake_path(GET pc_dir PARENT_PATH libdir)
  run(${CMAKE_COMMAND} -E env LD_LIBRARY_PATH=${libdir} ${WORK}/by_pkg_config)
endif()
