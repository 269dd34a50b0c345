# The Python module, and <build>/pythonpath: the two packages as a wheel would hold them, with links
# to the sources and the built module beside them. `PYTHONPATH=<build>/pythonpath python` needs no
# install step, and editing a .py file needs no build.
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
if(NOT pybind11_DIR AND NOT pybind11_ROOT)  # pip's package is where only Python knows
  execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
    OUTPUT_VARIABLE _pybind11_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(_pybind11_dir)
    set(pybind11_DIR ${_pybind11_dir} CACHE PATH "Where pybind11Config.cmake lies")
  endif()
endif()
add_subdirectory(python)

set(_tree ${PROJECT_BINARY_DIR}/pythonpath)
set(_source ${PROJECT_SOURCE_DIR}/python)
file(MAKE_DIRECTORY ${_tree}/smartspec_core)
file(CREATE_LINK ${_source}/smartspec ${_tree}/smartspec SYMBOLIC)
foreach(_name __init__.py cuda.py _core py.typed)  # _core: the stubs; the module itself wins
  file(CREATE_LINK ${_source}/smartspec_core/${_name} ${_tree}/smartspec_core/${_name} SYMBOLIC)
endforeach()
set_target_properties(_core PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${_tree}/smartspec_core)
