// What the headers of vectors share: the width of a register, how numbers lie in bits, scratch, inlining.
#pragma once

#include "varax.h"

#define VARAX_INLINE inline __attribute__((always_inline))
#define VARAX_NOINLINE __attribute__((noinline))
#define VARAX_LAMBDA __attribute__((always_inline))

namespace varax {
namespace VARAX_ISA {
namespace {

#if VARAX_LEVEL == 2
constexpr int kVectorBytes = 64;
#elif VARAX_LEVEL == 1
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Bits;
template <>
struct Bits<float> {
  typedef int32_t Int;
  static constexpr int mantissa = 23, bias = 127;
};
template <>
struct Bits<double> {
  typedef int64_t Int;
  static constexpr int mantissa = 52, bias = 1023;
};

template <class T>
VARAX_INLINE typename Bits<T>::Int bits_of(T x) {
  typename Bits<T>::Int i;
  __builtin_memcpy(&i, &x, sizeof(i));
  return i;
}
template <class T>
VARAX_INLINE T number_of(typename Bits<T>::Int i) {
  T x;
  __builtin_memcpy(&x, &i, sizeof(x));
  return x;
}

// Scratch memory on a cache line.
template <class T>
struct Scratch {
  explicit Scratch(int64_t count) : all(__builtin_malloc(count * sizeof(T) + 64)) {
    const uintptr_t first = (reinterpret_cast<uintptr_t>(all) + 63) & ~uintptr_t(63);
    at = reinterpret_cast<T*>(first);
    for (int64_t i = 0; i < count; ++i) at[i] = T{};
  }
  ~Scratch() { __builtin_free(all); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* all;
  T* at;
};

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
