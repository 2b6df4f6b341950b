// Means of series that share their covariances: given the gains, the filter is linear, and kKalmanTogether
// series go through it side by side.
#include "kalman_rows.h"

namespace varax {
namespace VARAX_ISA {
namespace {

constexpr int kMostN = kKalmanMostStates, kMostM = kKalmanMostObserved;
constexpr int kMeansBlock = 64;  // steps between two additions to the sums in float64

// A number of each series.
template <class T>
struct Wide {
  static constexpr int L = kVectorBytes / sizeof(T), W = kKalmanTogether / L;
  using V = Vector<T, L>;
  V v[W];

  VARAX_INLINE void clear() {
    for (int w = 0; w < W; ++w) v[w] = V{};
  }
  VARAX_INLINE void add(T a, const Wide& x) {
    for (int w = 0; w < W; ++w) v[w] += a * x.v[w];
  }
  VARAX_INLINE void add(const Wide& a, const Wide& b) {
    for (int w = 0; w < W; ++w) v[w] += a.v[w] * b.v[w];
  }
  T* numbers() { return reinterpret_cast<T*>(v); }
  const T* numbers() const { return reinterpret_cast<const T*>(v); }
};

// The sum over series of a b, as a vector whose elements are still to be added.
template <class T>
VARAX_INLINE typename Wide<T>::V products(const Wide<T>& a, const Wide<T>& b) {
  typename Wide<T>::V s = a.v[0] * b.v[0];
  for (int w = 1; w < Wide<T>::W; ++w) s += a.v[w] * b.v[w];
  return s;
}

// A sum over series and, if the parameter does not vary, over time.
template <class T, int Most>
struct Summed {
  using V = typename Wide<T>::V;
  static constexpr int L = Wide<T>::L;
  V now[Most];
  double total[Most] = {};
  T* to;
  const int64_t step;
  const int size;

  Summed(const Strided<T>& a, int64_t group, int size) : to(a.data + group * a.series), step(a.step), size(size) {
    for (int k = 0; k < size; ++k) now[k] = V{};
  }
  VARAX_INLINE void done(int64_t t) {
    if (!step) return;
    for (int k = 0; k < size; ++k) {
      to[t * step + k] = sum_of<T, L>(now[k]);
      now[k] = V{};
    }
  }
  void flush() {
    if (step) return;
    for (int k = 0; k < size; ++k) {
      total[k] += double(sum_of<T, L>(now[k]));
      now[k] = V{};
    }
  }
  void finish() {
    flush();
    for (int k = 0; !step && k < size; ++k) to[k] = T(total[k]);
  }
};

template <class T>
struct Series {
  using W = Wide<T>;
  const KalmanModel<T>& of;
  const Strided<const T>&gain, &precision;
  const int n, m;
  const int64_t first, count;
  W mean[kMostN], v[kMostM], u[kMostM], b[kMostN], d[kMostM];

  Series(const KalmanModel<T>& of, const Strided<const T>& gain, const Strided<const T>& precision, int64_t group)
      : of(of), gain(gain), precision(precision), n(int(of.n)), m(int(of.m)), first(group * kKalmanTogether),
        count(of.batch - first < kKalmanTogether ? of.batch - first : kKalmanTogether) {
    if (of.steps > 0) gather(of.d, 0, 1, m, d);
    if (of.steps > 1) gather(of.b, 0, 1, n, b);
  }
  // `size` numbers of each of `steps` times, of an array that varies if there are several; series beyond the
  // last repeat it.
  VARAX_INLINE void gather(const Strided<const T>& a, int64_t t, int steps, int size, W* to) const {
    for (int l = 0; l < kKalmanTogether; ++l) {
      const T* p = a.data + (first + (l < count ? l : count - 1)) * a.series + t * a.step;
      T* flat = to->numbers() + l;
#pragma GCC unroll 8
      for (int i = 0; i < steps * size; ++i) flat[i * kKalmanTogether] = p[i];
    }
  }
  // The observations of a segment. Each series is a stream of its own, too many for the processor to
  // foresee: those of the `next` segment are asked for here.
  VARAX_NOINLINE void observations(int64_t start, int steps, int64_t next, W* to) const {
    gather(of.y, start, steps, m, to);
    if (next < 0 || next >= of.steps) return;
    for (int64_t s = first; s < first + count; ++s) {
      const char* p = reinterpret_cast<const char*>(of.y.data + s * of.y.series + next * m);
      for (size_t byte = 0; byte < kKalmanSegment * m * sizeof(T); byte += 64) __builtin_prefetch(p + byte);
    }
  }
  VARAX_NOINLINE void scatter(const Strided<T>& a, int64_t t, int steps, int size, const W* from) const {
    for (int l = 0; l < count; ++l) {
      T* p = a.data + (first + l) * a.series + t * a.step;
      const T* flat = from->numbers() + l;
#pragma GCC unroll 8
      for (int i = 0; i < steps * size; ++i) p[i] = flat[i * kKalmanTogether];
    }
  }
  VARAX_INLINE void update(int64_t t, const W* y) {
    if (of.d.step && t > 0) gather(of.d, t, 1, m, d);
    const T *H = of.H.data + t * of.H.step, *K = gain.data + t * gain.step, *S = precision.data + t * precision.step;
    const uint8_t* seen = of.mask.data + t * of.mask.step;
    for (int o = 0; o < m; ++o) {
      W r;
      r.clear();
      if (seen[o]) {
        for (int w = 0; w < W::W; ++w) r.v[w] = y[o].v[w] - d[o].v[w];
        for (int j = 0; j < n; ++j) r.add(-H[o * n + j], mean[j]);
      }
      v[o] = r;
    }
    for (int o = 0; o < m; ++o) {
      W r;
      r.clear();
      for (int p = 0; p < m; ++p) r.add(S[o * m + p], v[p]);
      u[o] = r;
    }
    for (int j = 0; j < n; ++j) {
      W r = mean[j];
      for (int o = 0; o < m; ++o) r.add(K[j * m + o], v[o]);
      mean[j] = r;
    }
  }
  VARAX_INLINE void predict(int64_t t) {
    if (of.b.step && t > 0) gather(of.b, t, 1, n, b);
    const T* A = of.A.data + t * of.A.step;
    W next[kMostN];
    for (int i = 0; i < n; ++i) {
      W r = b[i];
      for (int j = 0; j < n; ++j) r.add(A[i * n + j], mean[j]);
      next[i] = r;
    }
    for (int i = 0; i < n; ++i) mean[i] = next[i];
  }
};

template <class T>
void value(const KalmanMeans<T>& problem, int64_t group) {
  using W = Wide<T>;
  const KalmanModel<T>& of = problem.model;
  Series<T> x(of, problem.gain, problem.precision, group);
  const int n = x.n, m = x.m;
  W ys[kKalmanSegment * kMostM], means[kKalmanSegment * kMostN], whites[kKalmanSegment * kMostM], square;
  double total[kKalmanTogether] = {};
  x.gather(of.m0, 0, 1, n, x.mean);
  square.clear();
  for (int64_t t = 0; t < of.steps; ++t) {
    const int at = int(t % kKalmanSegment);
    const int64_t rest = of.steps - t;
    if (at == 0) x.observations(t, int(rest < kKalmanSegment ? rest : kKalmanSegment), t + kKalmanSegment, ys);
    x.update(t, ys + at * m);
    for (int o = 0; o < m; ++o) square.add(x.u[o], x.v[o]);
    for (int j = 0; j < n; ++j) means[at * n + j] = x.mean[j];
    for (int o = 0; o < m; ++o) whites[at * m + o] = x.u[o];
    if (at == kKalmanSegment - 1 || rest == 1) {
      if (problem.mean.data) x.scatter(problem.mean, t - at, at + 1, n, means);
      if (problem.white.data) x.scatter(problem.white, t - at, at + 1, m, whites);
    }
    if ((t + 1) % kMeansBlock == 0 || rest == 1) {
      for (int l = 0; l < kKalmanTogether; ++l) total[l] += double(square.numbers()[l]);
      square.clear();
    }
    if (rest == 1) break;
    x.predict(t);
    if (problem.checkpoint.data && at == kKalmanSegment - 1)
      x.scatter(problem.checkpoint, t / kKalmanSegment, 1, n, x.mean);
  }
  for (int l = 0; l < x.count; ++l) problem.square[x.first + l] = T(total[l]);
}

// Cotangents of an offset: of each series, at each time or summed over time.
template <class T, int Most>
struct Offset {
  Wide<T> now[Most];
  double total[Most][kKalmanTogether] = {};
  const Series<T>& x;
  const Strided<T>& to;
  const int size;

  Offset(const Series<T>& x, const Strided<T>& to, int size) : x(x), to(to), size(size) {
    for (int k = 0; k < size; ++k) now[k].clear();
  }
  VARAX_INLINE void add(int64_t t, T a, const Wide<T>* values) {
    for (int k = 0; k < size; ++k) now[k].add(a, values[k]);
    if (to.step) {
      x.scatter(to, t, 1, size, now);
      for (int k = 0; k < size; ++k) now[k].clear();
    }
  }
  void flush() {
    if (to.step) return;
    for (int k = 0; k < size; ++k) {
      for (int l = 0; l < kKalmanTogether; ++l) total[k][l] += double(now[k].numbers()[l]);
      now[k].clear();
    }
  }
  void finish() {
    if (to.step) return;
    flush();
    for (int k = 0; k < size; ++k)
      for (int l = 0; l < kKalmanTogether; ++l) now[k].numbers()[l] = T(total[k][l]);
    x.scatter(to, 0, 1, size, now);
  }
};

// The lines of kernels/mp/kalman_adjoint.py that concern means, of many series.
template <class T>
void adjoint(const KalmanMeansAdjoint<T>& problem, int64_t group) {
  using W = Wide<T>;
  constexpr int L = W::L;
  const KalmanModel<T>& of = problem.model;
  Series<T> x(of, problem.gain, problem.precision, group);
  const int n = x.n, m = x.m, width = n + m;
  W kept[kKalmanSegment * (kMostN + kMostM)], ys[kKalmanSegment * kMostM], dys[kKalmanSegment * kMostM];
  W dm[kMostN], dmf[kMostN], k[kMostM], l, lu[kMostM];
  Summed<T, kMostN * kMostN> dA(problem.d_A, group, n * n);
  Summed<T, kMostM * kMostN> dH(problem.d_H, group, m * n);
  Offset<T, kMostN> db(x, problem.d_b, n);
  Offset<T, kMostM> dd(x, problem.d_d, m);
  l.clear();
  if (problem.d_log_likelihood.data) {
    x.gather(problem.d_log_likelihood, 0, 1, 1, &l);
    for (int s = int(x.count); s < kKalmanTogether; ++s) l.numbers()[s] = 0;
  }
  for (int j = 0; j < n; ++j) dm[j].clear();
  for (int64_t end = of.steps; end > 0;) {
    const int64_t start = (end - 1) / kKalmanSegment * kKalmanSegment;
    const int count = int(end - start);
    if (start == 0) {
      x.gather(of.m0, 0, 1, n, x.mean);
    } else {
      x.gather(problem.checkpoint, start / kKalmanSegment - 1, 1, n, x.mean);
    }
    x.observations(start, count, start - kKalmanSegment, ys);
    if (start == 0 && of.d.step) x.gather(of.d, 0, 1, m, x.d);
    if (start == 0 && of.b.step && of.steps > 1) x.gather(of.b, 0, 1, n, x.b);
    for (int i = 0; i < count; ++i) {
      x.update(start + i, ys + i * m);
      for (int j = 0; j < n; ++j) kept[i * width + j] = x.mean[j];
      for (int o = 0; o < m; ++o) kept[i * width + n + o] = x.u[o];
      if (i + 1 < count) x.predict(start + i);
    }
    for (int64_t t = end - 1; t >= start; --t) {
      const W *mf = kept + (t - start) * width, *u = mf + n;
      if (t + 1 < of.steps) {
        const T* A = of.A.data + t * of.A.step;
        for (int i = 0; i < n; ++i)
          for (int j = 0; j < n; ++j) dA.now[i * n + j] += products(dm[i], mf[j]);
        dA.done(t);
        db.add(t, 1, dm);
        for (int j = 0; j < n; ++j) {
          W r;
          r.clear();
          for (int i = 0; i < n; ++i) r.add(A[i * n + j], dm[i]);
          dmf[j] = r;
        }
      } else {
        for (int j = 0; j < n; ++j) dmf[j].clear();
      }
      if (problem.d_mean.data) {
        W more[kMostN];
        x.gather(problem.d_mean, t, 1, n, more);
        for (int j = 0; j < n; ++j) {
          for (int s = int(x.count); s < kKalmanTogether; ++s) more[j].numbers()[s] = 0;
          dmf[j].add(T(1), more[j]);
        }
      }
      const T *H = of.H.data + t * of.H.step, *K = problem.gain.data + t * problem.gain.step;
      W* dy = dys + (t - start) * m;
      for (int o = 0; o < m; ++o) {
        W r, s;
        r.clear();
        for (int j = 0; j < n; ++j) r.add(K[j * m + o], dmf[j]);
        for (int w = 0; w < W::W; ++w) {
          s.v[w] = l.v[w] * u[o].v[w];
          dy[o].v[w] = r.v[w] - s.v[w];
        }
        k[o] = r;
        lu[o] = s;
      }
      T* sums = problem.sums.data + group * problem.sums.series + t * problem.sums.step;
      for (int o = 0; o < m; ++o) {
        for (int j = 0; j < n; ++j) {
          *sums++ = sum_of<T, L>(products(u[o], dmf[j]));
          dH.now[o * n + j] -= products(dy[o], mf[j]);
        }
      }
      for (int o = 0; o < m; ++o)
        for (int p = 0; p < m; ++p) *sums++ = sum_of<T, L>(products(k[o], u[p]));
      for (int o = 0; o < m; ++o)
        for (int p = 0; p < m; ++p) *sums++ = sum_of<T, L>(products(lu[o], u[p]));
      dH.done(t);
      dd.add(t, -1, dy);
      for (int j = 0; j < n; ++j) {
        W r = dmf[j];
        for (int o = 0; o < m; ++o) r.add(-H[o * n + j], dy[o]);
        dm[j] = r;
      }
      if (t % kMeansBlock == 0) dA.flush(), dH.flush(), db.flush(), dd.flush();
    }
    x.scatter(problem.d_y, start, count, m, dys);
    end = start;
  }
  dA.finish(), dH.finish(), db.finish(), dd.finish();
  x.scatter(problem.d_m0, 0, 1, n, dm);
}

}  // namespace

void kalman_means_f32(const KalmanMeans<float>* problem, int64_t group) { value(*problem, group); }
void kalman_means_f64(const KalmanMeans<double>* problem, int64_t group) { value(*problem, group); }
void kalman_means_adjoint_f32(const KalmanMeansAdjoint<float>* problem, int64_t group) { adjoint(*problem, group); }
void kalman_means_adjoint_f64(const KalmanMeansAdjoint<double>* problem, int64_t group) { adjoint(*problem, group); }

}  // namespace VARAX_ISA
}  // namespace varax
