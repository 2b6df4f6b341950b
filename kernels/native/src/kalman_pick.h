// From sizes at run time to loops of fixed sizes. Included by kernel files only.
#pragma once

#include "kalman_rows.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class X_> struct TypeOf { using X = X_; };
template <int M> struct SizeOf { static constexpr int value = M; };

// Fewer series than this are run one by one, as are those that are observed several at a time.
#if defined(__AVX2__)
constexpr int64_t kLeastInLanes = 4;
#else
constexpr int64_t kLeastInLanes = INT64_MAX;  // short vectors gain little
#endif

VARAX_INLINE bool in_lanes(int64_t m, int64_t batch) { return batch >= kLeastInLanes && m == 1; }

template <class T>
int64_t groups(int64_t m, int64_t batch) {
  constexpr int64_t lanes = kBytes / sizeof(T);
  return in_lanes(m, batch) ? (batch + lanes - 1) / lanes : batch;
}

template <class T, int N, class F>
void pick_layout(const KalmanModel<T>& of, const F& f) {
  if (of.m > 1) return f(TypeOf<Single<T, N>>(), SizeOf<kKalmanMostObserved>());
#if defined(__AVX2__)
  if (in_lanes(of.m, of.batch)) return f(TypeOf<Lanes<T, N>>(), SizeOf<1>());
#endif
  f(TypeOf<Single<T, N>>(), SizeOf<1>());
}

// f(TypeOf<X>, SizeOf<M>) for the problem's layout and sizes.
template <class T, class F>
void pick(const KalmanModel<T>& of, const F& f) {
  switch (of.n) {
    case 1: return pick_layout<T, 1>(of, f);
    case 2: return pick_layout<T, 2>(of, f);
    case 3: return pick_layout<T, 3>(of, f);
    case 4: return pick_layout<T, 4>(of, f);
    case 5: return pick_layout<T, 5>(of, f);
    case 6: return pick_layout<T, 6>(of, f);
    case 7: return pick_layout<T, 7>(of, f);
    case 8: return pick_layout<T, 8>(of, f);
  }
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
