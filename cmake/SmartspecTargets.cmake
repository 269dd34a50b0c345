# Warnings and sanitizers: PRIVATE to our own targets, never exported.
add_library(smartspec_options INTERFACE)
# No contraction: a*b+c must not become an FMA in one loop and not in its remainder, or results
# would depend on how many rows ride along. Kernels that want FMA say so with intrinsics.
target_compile_options(smartspec_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wconversion -Wshadow -ffp-contract=off>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # gcc 12 sees overlaps inside std::string's operator+ that are not there (gcc bug 105651).
  target_compile_options(smartspec_options INTERFACE -Wno-restrict)
endif()
if(SMARTSPEC_SANITIZE)
  list(JOIN SMARTSPEC_SANITIZE "," _sanitizers)
  target_compile_options(smartspec_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${_sanitizers} -fno-omit-frame-pointer
      -fno-sanitize-recover=all>)
  target_link_options(smartspec_options INTERFACE -fsanitize=${_sanitizers})
endif()
