// What the handlers of linear-Gaussian chains read: buffers are checked here, the loops trust them.
#pragma once

#include <string>

#include "handler.h"
#include "kalman.h"

namespace varax {
namespace {

// Reads the arguments and results one after the other; the first that has a wrong size is the error.
struct Reader {
  ffi::RemainingArgs args;
  ffi::RemainingRets rets;
  int64_t batch;
  std::string error;
  size_t arg = 0, ret = 0;

  template <class T>
  bool fits(const char* name, ffi::AnyBuffer buffer, int64_t size) {
    if (buffer.element_type() == ffi::DataType::PRED ? sizeof(T) != 1
                                                     : buffer.size_bytes() != size * sizeof(T)) {
      if (error.empty()) error = std::string("kalman: wrong type or size of ") + name;
      return false;
    }
    return true;
  }
  bool bad_count() {
    if (arg != args.size() || ret != rets.size()) error = "kalman: wrong number of buffers";
    return !error.empty();
  }
  // `times` is the length of the time axis, or 0 for an array that has none.
  template <class T>
  Strided<const T> in(const char* name, int64_t size, int64_t times, bool varies, bool batched, bool optional = false) {
    Strided<const T> found;
    if (arg >= args.size()) {
      error = "kalman: too few operands";
      return found;
    }
    ffi::AnyBuffer buffer = *args.get<ffi::AnyBuffer>(arg++);
    if (optional && buffer.element_count() == 0) return found;
    int64_t one = varies ? size * times : size;
    if (static_cast<int64_t>(buffer.element_count()) != one * (batched ? batch : 1) ||
        !fits<T>(name, buffer, one * (batched ? batch : 1))) {
      if (error.empty()) error = std::string("kalman: wrong size of ") + name;
      return found;
    }
    found.data = reinterpret_cast<const T*>(buffer.untyped_data());
    found.step = varies ? size : 0;
    found.series = batched ? one : 0;
    return found;
  }
  template <class T>
  Strided<T> out(const char* name, int64_t size, int64_t times, bool varies, bool optional = false) {
    Strided<T> found;
    if (ret >= rets.size()) {
      error = "kalman: too few results";
      return found;
    }
    ffi::AnyBuffer buffer = **rets.get<ffi::AnyBuffer>(ret++);
    if (optional && buffer.element_count() == 0) return found;
    int64_t one = varies ? size * times : size;
    if (!fits<T>(name, buffer, one * batch)) return found;
    found.data = reinterpret_cast<T*>(buffer.untyped_data());
    found.step = varies ? size : 0;
    found.series = one;
    return found;
  }
};

inline int64_t checkpoints(int64_t steps) { return steps > 0 ? (steps - 1) / kKalmanSegment : 0; }

enum { kY, kA, kQ, kH, kR, kM0, kP0, kB, kD, kMask, kOperands };

template <class T>
KalmanModel<T> model(Reader& read, ffi::Span<const int64_t> sizes, ffi::Span<const int64_t> varies,
                     ffi::Span<const int64_t> batched) {
  KalmanModel<T> of{};
  if (sizes.size() != 5 || varies.size() != kOperands || batched.size() != kOperands) {
    read.error = "kalman: wrong attributes";
    return of;
  }
  of.n = sizes[0], of.m = sizes[1], of.steps = sizes[2], of.batch = sizes[3], of.lanes = sizes[4];
  if (of.lanes && (of.n > kKalmanMostInLanes || of.m > 1)) read.error = "kalman: sizes that have no lanes";
  if (of.n < 1 || of.n > kKalmanMostStates || of.m < 1 || of.m > kKalmanMostObserved || of.steps < 0 || of.batch < 0) {
    read.error = "kalman: sizes that are not served";
    return of;
  }
  read.batch = of.batch;
  const int64_t n = of.n, m = of.m, steps = of.steps, moves = std::max<int64_t>(steps - 1, 0);
  of.y = read.in<T>("y", m, steps, true, batched[kY]);
  of.A = read.in<T>("A", n * n, moves, varies[kA], batched[kA]);
  of.Q = read.in<T>("Q", n * n, moves, varies[kQ], batched[kQ]);
  of.H = read.in<T>("H", m * n, steps, varies[kH], batched[kH]);
  of.R = read.in<T>("R", m * m, steps, varies[kR], batched[kR]);
  of.m0 = read.in<T>("m0", n, 0, false, batched[kM0]);
  of.P0 = read.in<T>("P0", n * n, 0, false, batched[kP0]);
  of.b = read.in<T>("b", n, moves, varies[kB], batched[kB]);
  of.d = read.in<T>("d", m, steps, varies[kD], batched[kD]);
  of.mask = read.in<uint8_t>("mask", m, steps, varies[kMask], batched[kMask]);
  return of;
}

inline auto kalman_binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .RemainingArgs()
      .RemainingRets()
      .Attr<ffi::Span<const int64_t>>("sizes")
      .Attr<ffi::Span<const int64_t>>("varies")
      .Attr<ffi::Span<const int64_t>>("batched");
}

}  // namespace
}  // namespace varax
