// Packed codes as floats: the weights before the scales. Kernel files only.
//
// A grid of at most 16 values is one register, and the code's place in it one permutation.
#pragma once

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#include "quantized_bytes.h"
#include "vector_bits.h"

namespace varax {
namespace VARAX_ISA {
namespace {

#if VARAX_LEVEL == 1
// Two registers: a compiler's vector of 64 bytes would go through memory.
struct Ints {
  __m256i half[2];
};
struct Floats {
  __m256 half[2];
  friend VARAX_INLINE Floats operator+(const Floats& a, const Floats& b) {
    return {{_mm256_add_ps(a.half[0], b.half[0]), _mm256_add_ps(a.half[1], b.half[1])}};
  }
  friend VARAX_INLINE Floats operator-(const Floats& a, const Floats& b) {
    return {{_mm256_sub_ps(a.half[0], b.half[0]), _mm256_sub_ps(a.half[1], b.half[1])}};
  }
  friend VARAX_INLINE Floats operator*(const Floats& a, const Floats& b) {
    return {{_mm256_mul_ps(a.half[0], b.half[0]), _mm256_mul_ps(a.half[1], b.half[1])}};
  }
  friend VARAX_INLINE Floats operator*(float a, const Floats& b) { return all(a) * b; }
  friend VARAX_INLINE Floats operator+(const Floats& a, float b) { return a + all(b); }
  VARAX_INLINE Floats& operator+=(const Floats& b) { return *this = *this + b; }
  static VARAX_INLINE Floats all(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
};
VARAX_INLINE Ints shifted(Ints v, int bits) {
  for (auto& half : v.half) half = _mm256_srli_epi32(half, bits);
  return v;
}
VARAX_INLINE Floats low_byte(const Ints& v) {
  const __m256i byte = _mm256_set1_epi32(255);
  return {{_mm256_cvtepi32_ps(_mm256_and_si256(v.half[0], byte)),
           _mm256_cvtepi32_ps(_mm256_and_si256(v.half[1], byte))}};
}
#else
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));
inline Ints shifted(const Ints& v, int bits) { return v >> bits; }
inline Floats low_byte(const Ints& v) { return __builtin_convertvector(v & 255, Floats); }
#endif

inline void as_ints(const Bytes& v, Ints& out) { std::memcpy(&out, &v, 64); }

// The entries of a table of 16 at the low 4 bits of each index.
struct Grid {
#if VARAX_LEVEL == 2
  __m512 entries;
  explicit Grid(const float* t) : entries(_mm512_loadu_ps(t)) {}
  void operator()(const Ints& index, Floats& out) const {
    out = (Floats)_mm512_permutexvar_ps((__m512i)index, entries);
  }
#elif VARAX_LEVEL == 1
  __m256 low, high;
  explicit Grid(const float* t) : low(_mm256_loadu_ps(t)), high(_mm256_loadu_ps(t + 8)) {}
  void operator()(const Ints& index, Floats& out) const {
    for (int h = 0; h < 2; ++h) {
      const __m256i i = index.half[h];
      const __m256 a = _mm256_permutevar8x32_ps(low, i), b = _mm256_permutevar8x32_ps(high, i);
      const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));
      out.half[h] = _mm256_blendv_ps(a, b, upper);
    }
  }
#else
  const float* entries;
  explicit Grid(const float* t) : entries(t) {}
  void operator()(const Ints& index, Floats& out) const {
    for (int n = 0; n < 16; ++n) out[n] = entries[index[n] & 15];
  }
#endif
};

// The weights of 4 successive inputs, before the scales.
template <int BITS>
inline void decode_quad(const uint8_t* unit, int q, const Grid& grid, const Floats& zeros, Floats* out) {
  Ints codes;
  as_ints(quad_of_unit<BITS>(unit, q), codes);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if (BITS == 8) {
      out[i] = low_byte(shifted(codes, 8 * i)) - zeros;
    } else {
      Floats v;
      grid(shifted(codes, 8 * i), v);
      out[i] = v - zeros;
    }
  }
}

template <int BITS>
void decode(const uint8_t* unit, int64_t inputs, const Grid& grid, const Floats& zeros, Floats* out) {
  constexpr int quads = quads_of_unit(BITS);
  for (int64_t u = 0; u < inputs / (4 * quads); ++u, unit += bytes_of_unit(BITS)) {
#pragma GCC unroll 4
    for (int q = 0; q < quads; ++q, out += 4) decode_quad<BITS>(unit, q, grid, zeros, out);
  }
}

inline void decode(int64_t bits, const uint8_t* codes, int64_t inputs, const Grid& grid, const Floats& zeros,
                   Floats* out) {
  if (bits == 8) decode<8>(codes, inputs, grid, zeros, out);
  if (bits == 4) decode<4>(codes, inputs, grid, zeros, out);
  if (bits == 3) decode<3>(codes, inputs, grid, zeros, out);
  if (bits == 2) decode<2>(codes, inputs, grid, zeros, out);
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
