// Sums and products over time that keep their digits. Included by kernel files only.
#pragma once

#include "kalman_rows.h"

namespace varax {
namespace VARAX_ISA {
namespace {

constexpr int kBlock = 64;  // steps between two flushes of the sums

// Cotangents of a parameter, rows of it: written at every step, or summed over time in blocks whose sums are
// compensated (Neumaier), so that float32 is right at a million steps. `Value` is a row or a number.
template <class X, class Value, int Most>
struct Gathered {
  Value now[Most], block[Most], total[Most], lost[Most];
  const Strided<typename X::T>& to;
  const bool varies;

  VARAX_INLINE explicit Gathered(const Strided<typename X::T>& to) : to(to), varies(to.step != 0) {
    for (int i = 0; i < Most; ++i) block[i] = total[i] = lost[i] = Value{};
  }
  VARAX_INLINE void add(int i, const Value& x) {
    if (varies) {
      now[i] = x;
    } else {
      block[i] = block[i] + x;
    }
  }
  VARAX_INLINE void store(const X& x, int64_t t, int count) {
    if constexpr (sizeof(Value) == sizeof(typename X::E)) {
      x.scatter(to, t, count, reinterpret_cast<const typename X::E*>(now));
    } else {
      x.store_rows(to, t, count, now);
    }
  }
  VARAX_INLINE void done(const X& x, int64_t t, int count) {
    if (varies) store(x, t, count);
  }
  VARAX_NOINLINE void flush(int count) {
#pragma GCC unroll 1
    for (int i = 0; i < count; ++i) {
      Value next = total[i] + block[i], back = next - total[i];
      lost[i] = lost[i] + ((total[i] - (next - back)) + (block[i] - back));
      total[i] = next;
      block[i] = Value{};
    }
  }
  VARAX_NOINLINE void finish(const X& x, int count) {
    if (varies) return;
    flush(count);
    for (int i = 0; i < count; ++i) now[i] = total[i] + lost[i];
    store(x, 0, count);
  }
};

// The logarithm of a product of positive numbers: mantissas multiplied, exponents added, one logarithm at the
// end of a block. A factor that is not positive, or not finite, makes it NaN.
template <class X>
struct LogProduct {
  using E = typename X::E;
  using I = typename X::I;
  using B = Bits<typename X::T>;
  E mantissa;
  I exponent, bad;
  VARAX_INLINE void clear() {
    mantissa = X::broadcast(1);
    exponent = bad = I{};
  }
  static VARAX_INLINE void divide(E& x, I& exponent) {  // x becomes its mantissa
    using Int = typename B::Int;
    I i = X::bits(x);
    exponent += (i >> B::mantissa) - Int(B::bias);
    x = X::number((i & ((Int(1) << B::mantissa) - 1)) | (Int(B::bias) << B::mantissa));
  }
  VARAX_INLINE void split() { divide(mantissa, exponent); }
  VARAX_INLINE void times(E x) {
    using Int = typename B::Int;
    constexpr Int infinity = Int(2 * B::bias + 1) << B::mantissa;
    I i = X::bits(x);
    bad |= (i <= 0) | (i >= infinity);
    divide(x, exponent);
    mantissa *= x;
  }
  double log_of(int l) const {
    if (X::lane_of(bad, l)) return std::nan("");
    return std::log(double(X::lane(mantissa, l))) + 0.6931471805599453 * double(X::lane_of(exponent, l));
  }
};

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
