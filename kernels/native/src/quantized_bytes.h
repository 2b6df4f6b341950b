// Packed codes of 4, 3 or 2 bits as one byte each: quads of 64 bytes, as 8-bit codes lie. Kernel files only.
#pragma once

#include <cstring>
#if VARAX_LEVEL > 0
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // what GCC 12's own intrinsics leave undefined
#endif
#include <immintrin.h>
#endif

#include "quantized.h"

namespace varax {
namespace VARAX_ISA {
namespace {

#if VARAX_LEVEL == 2
using Bytes = __m512i;
inline Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_bytes(uint8_t* p, Bytes v) { _mm512_storeu_si512(p, v); }
inline Bytes field(Bytes v, int shift, int mask) {
  return _mm512_and_si512(_mm512_srli_epi16(v, shift), _mm512_set1_epi8(mask));
}
inline Bytes plus_four_where(Bytes v, const uint8_t* bits) {
  uint64_t mask;
  std::memcpy(&mask, bits, 8);
  return _mm512_mask_add_epi8(v, mask, v, _mm512_set1_epi8(4));
}
struct Table {
  __m512i entries;
  explicit Table(const uint8_t* t) : entries(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)t))) {}
  Bytes operator()(Bytes v) const { return _mm512_shuffle_epi8(entries, v); }
};
#elif VARAX_LEVEL == 1
struct Bytes {
  __m256i half[2];
};
inline Bytes load_bytes(const uint8_t* p) {
  return {{_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))}};
}
inline void store_bytes(uint8_t* p, const Bytes& v) {
  for (int h = 0; h < 2; ++h) _mm256_storeu_si256((__m256i*)(p + 32 * h), v.half[h]);
}
inline Bytes field(Bytes v, int shift, int mask) {
  for (auto& half : v.half) half = _mm256_and_si256(_mm256_srli_epi16(half, shift), _mm256_set1_epi8(mask));
  return v;
}
inline Bytes plus_four_where(Bytes v, const uint8_t* bits) {
  const __m256i one = _mm256_set1_epi64x(int64_t(0x8040201008040201));  // the bit of each byte
  const __m256i from = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  for (int h = 0; h < 2; ++h) {
    int32_t word;
    std::memcpy(&word, bits + 4 * h, 4);
    const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), from), one);
    const __m256i where = _mm256_cmpeq_epi8(spread, one);
    v.half[h] = _mm256_add_epi8(v.half[h], _mm256_and_si256(where, _mm256_set1_epi8(4)));
  }
  return v;
}
struct Table {
  __m256i entries;
  explicit Table(const uint8_t* t) : entries(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)t))) {}
  Bytes operator()(Bytes v) const {
    for (auto& half : v.half) half = _mm256_shuffle_epi8(entries, half);
    return v;
  }
};
#else
struct Bytes {
  uint8_t b[64];
};
inline Bytes load_bytes(const uint8_t* p) {
  Bytes v;
  std::memcpy(v.b, p, 64);
  return v;
}
inline void store_bytes(uint8_t* p, const Bytes& v) { std::memcpy(p, v.b, 64); }
inline Bytes field(const Bytes& v, int shift, int mask) {
  Bytes r;
  for (int i = 0; i < 64; ++i) r.b[i] = (v.b[i] >> shift) & mask;
  return r;
}
inline Bytes plus_four_where(const Bytes& v, const uint8_t* bits) {
  Bytes r;
  for (int i = 0; i < 64; ++i) r.b[i] = v.b[i] + 4 * (bits[i >> 3] >> (i & 7) & 1);
  return r;
}
struct Table {
  const uint8_t* entries;
  explicit Table(const uint8_t* t) : entries(t) {}
  Bytes operator()(const Bytes& v) const {
    Bytes r;
    for (int i = 0; i < 64; ++i) r.b[i] = entries[v.b[i]];
    return r;
  }
};
#endif

constexpr int64_t quads_of_unit(int bits) { return bits == 8 ? 1 : bits == 4 ? 2 : 4; }
constexpr int64_t bytes_of_unit(int bits) { return bits == 3 ? 96 : 64; }

template <int BITS>
inline Bytes quad_of_unit(const uint8_t* unit, int q) {
  if (BITS == 8) return load_bytes(unit);
  if (BITS == 4) return field(load_bytes(unit), 4 * q, 15);
  Bytes two = field(load_bytes(unit), 2 * q, 3);
  return BITS == 2 ? two : plus_four_where(two, unit + 64 + 8 * q);
}

template <int BITS>
void expand_bits(const uint8_t* from, int64_t inputs, const uint8_t* table, uint8_t* to) {
  constexpr int64_t quads = quads_of_unit(BITS);
  static const uint8_t none[16] = {};
  const Table look(table ? table : none);
  for (int64_t u = 0; u < inputs / (4 * quads); ++u, from += bytes_of_unit(BITS)) {
#pragma GCC unroll 4
    for (int q = 0; q < quads; ++q, to += 64) {
      Bytes v = quad_of_unit<BITS>(from, q);
      store_bytes(to, table ? look(v) : v);
    }
  }
}

// Codes (or a table's entries) of `inputs` inputs of a tile, one byte each.
inline void expand(int64_t bits, const uint8_t* from, int64_t inputs, const uint8_t* table, uint8_t* to) {
  if (bits == 4) expand_bits<4>(from, inputs, table, to);
  if (bits == 3) expand_bits<3>(from, inputs, table, to);
  if (bits == 2) expand_bits<2>(from, inputs, table, to);
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
