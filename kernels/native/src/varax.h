// What every native kernel shares: handlers, instruction sets, threads.
//
// A kernel is two files. `name.kernel.cc` holds the loops, in namespace VARAX_ISA, and is compiled once
// per instruction set; `name.cc` holds the FFI handlers, is compiled once for the oldest processor, and
// calls the loops through VARAX_PICK. Kernel files keep their helpers in anonymous namespaces or `static`
// and use no templates of the standard library: the linker would merge those across instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>

// Which instruction set this file is compiled for: 0 portable, 1 AVX2 + FMA, 2 AVX-512 (F, DQ, BW, VL, VNNI).
#ifndef VARAX_LEVEL
#define VARAX_LEVEL 0
#endif

#if VARAX_LEVEL == 2
#define VARAX_ISA avx512
#elif VARAX_LEVEL == 1
#define VARAX_ISA avx2
#else
#define VARAX_ISA portable
#endif

// VARAX_DECLARE(void f(int);) declares varax::portable::f, varax::avx2::f and varax::avx512::f;
// VARAX_PICK(f) is the one that this machine runs.
#if defined(VARAX_X86)
#define VARAX_DECLARE(...)              \
  namespace varax {                     \
  namespace portable { __VA_ARGS__ }    \
  namespace avx2 { __VA_ARGS__ }        \
  namespace avx512 { __VA_ARGS__ }      \
  }
#define VARAX_PICK(f)                                                   \
  (::varax::level() == 2 ? &::varax::avx512::f                          \
                         : ::varax::level() == 1 ? &::varax::avx2::f    \
                                                 : &::varax::portable::f)
#else
#define VARAX_DECLARE(...) \
  namespace varax {        \
  namespace portable { __VA_ARGS__ } \
  }
#define VARAX_PICK(f) (&::varax::portable::f)
#endif

namespace varax {

// The instruction set in use: the best that both the processor and VARAX_ISA (the environment variable:
// portable, avx2, avx512) allow.
int level();

}  // namespace varax
