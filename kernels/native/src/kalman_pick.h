// From sizes at run time to loops of fixed sizes. Included by kernel files only.
#pragma once

#include "kalman_lanes.h"

namespace varax {
namespace VARAX_ISA {
namespace {

// Loops of fixed sizes are for the few states and single observations of most models, and for the processors
// of today: what is compiled for any x86 has loops for up to 4 and up to 8 states, and no lanes.
#if defined(VARAX_X86) && VARAX_LEVEL == 0
constexpr int kMostFixed = 0;
#else
constexpr int kMostFixed = kKalmanMostInLanes;
#endif

template <class X_> struct TypeOf { using X = X_; };

template <class T>
int64_t groups(const KalmanModel<T>& of) {
  constexpr int64_t lanes = kVectorBytes / sizeof(T);
  return of.lanes && kMostFixed > 0 ? (of.batch + lanes - 1) / lanes : of.batch;
}

template <class T, int N, class F>
void pick_layout(const KalmanModel<T>& of, const F& f) {
  of.lanes ? f(TypeOf<Lanes<T, N>>()) : f(TypeOf<Single<T, N, true>>());
}

// f(TypeOf<X>) for the problem's layout and sizes.
template <class T, class F>
void pick(const KalmanModel<T>& of, const F& f) {
  if constexpr (kMostFixed > 0) {
    switch (of.m == 1 ? of.n : 0) {
      case 1: return pick_layout<T, 1>(of, f);
      case 2: return pick_layout<T, 2>(of, f);
      case 3: return pick_layout<T, 3>(of, f);
      case 4: return pick_layout<T, 4>(of, f);
      case 5: return pick_layout<T, 5>(of, f);
      case 6: return pick_layout<T, 6>(of, f);
    }
  }
  of.n <= 4 ? f(TypeOf<Single<T, 4, false>>()) : f(TypeOf<Single<T, kKalmanMostStates, false>>());
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
