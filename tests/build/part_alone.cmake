# Builds core and PART into one shared library that must not leave a symbol undefined.
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

run(${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK} -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER}
  -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DBUILD_SHARED_LIBS=ON
  -DCMAKE_SHARED_LINKER_FLAGS=-Wl,--no-undefined
  "-DSMARTSPEC_PARTS=core\\;${PART}" -DSMARTSPEC_TESTS=OFF)
run(${CMAKE_COMMAND} --build ${WORK})
