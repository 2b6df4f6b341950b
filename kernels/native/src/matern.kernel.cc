// The Kalman filter of a Matern process, transitions made on the way. It computes in float64 throughout: the
// loop waits for its own results, not for the width of the numbers.
#include "matern_steps.h"

namespace varax {
namespace VARAX_ISA {
namespace {

// One series of a problem.
template <class T>
struct Series {
  const T *times, *y, *noise_sd;
  int64_t noise_step;
  double variance, length_scale, lambda;
  Series(const MaternProblem<T>& of, int64_t s, double rate)
      : times(of.times + s * of.series[0]),
        y(of.y + s * of.series[1]),
        noise_sd(of.noise_sd + s * of.series[4]),
        noise_step(of.noise_step),
        variance(of.variance[s * of.series[2]]),
        length_scale(of.length_scale[s * of.series[3]]),
        lambda(rate / length_scale) {}
  double noise(int64_t t) const {
    double sd = noise_sd[t * noise_step];
    return sd * sd;
  }
  // lambda dt of the steps into times first .. first + count - 1; NaN where time runs backward.
  template <int O>
  void steps_into(Matern<O>& move, int64_t first, int count) const {
    for (int i = 0; i < count; ++i) {
      double dt = first + i > 0 ? double(times[first + i]) - double(times[first + i - 1]) : 0.0;
      move.x[i] = dt < 0 ? std::nan("") : lambda * dt;
    }
    move.make(count);
  }
};

// The state's moments, mean and packed covariance, on their way through a series.
template <int O>
struct Moments {
  using M = Matern<O>;
  static constexpr int n = M::n;
  double m[n], P[M::packed];

  VARAX_INLINE void start(double variance) {
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) {
      m[i] = 0;
#pragma GCC unroll 6
      for (int j = i; j < n; ++j) P[M::at(i, j)] = variance * M::stationary(i, j);
    }
  }
  template <class U>
  VARAX_INLINE void take(const U* from) {
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) m[i] = from[i];
#pragma GCC unroll 6
    for (int i = 0; i < M::packed; ++i) P[i] = from[n + i];
  }
  template <class U>
  VARAX_INLINE void put(U* to) const {
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) to[i] = U(m[i]);
#pragma GCC unroll 6
    for (int i = 0; i < M::packed; ++i) to[n + i] = U(P[i]);
  }
  // To the time of transition c.
  VARAX_INLINE void predict(const M& move, int c, double variance) {
    double B[n][n], next[n];
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) {
      next[i] = 0;
#pragma GCC unroll 6
      for (int k = 0; k < n; ++k) next[i] += move.a[i * n + k][c] * m[k];
#pragma GCC unroll 6
      for (int j = 0; j < n; ++j) {
        B[i][j] = 0;
#pragma GCC unroll 6
        for (int k = 0; k < n; ++k) B[i][j] += move.a[i * n + k][c] * P[M::at(k, j)];
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) {
      m[i] = next[i];
#pragma GCC unroll 6
      for (int j = i; j < n; ++j) {
        double sum = variance * move.q[M::at(i, j)][c];
#pragma GCC unroll 6
        for (int k = 0; k < n; ++k) sum += B[i][k] * move.a[j * n + k][c];
        P[M::at(i, j)] = sum;
      }
    }
  }
  // By an observation whose residual is v, of noise r, inverse = 1 / (P[0] + r). f itself is observed: its row
  // of the covariance shrinks by r / S.
  VARAX_INLINE void update(double v, double r, double inverse) {
    double K[n];
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) K[i] = P[i] * inverse;
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) m[i] += K[i] * v;
#pragma GCC unroll 6
    for (int i = 1; i < n; ++i)
#pragma GCC unroll 6
      for (int j = i; j < n; ++j) P[M::at(i, j)] -= K[i] * P[j];
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) P[i] *= r * inverse;
  }
};

template <class T, int O>
void value(const MaternProblem<T>& of, int64_t s) {
  using M = Matern<O>;
  const Series<T> series(of, s, M::rate());
  T* kept = of.kept ? of.kept + s * matern_segments(of.steps) * M::kept : nullptr;
  M move;
  Moments<O> state;
  state.start(series.variance);
  double total = 0;
  for (int64_t first = 0; first < of.steps; first += kSteps) {
    const int count = int(of.steps - first < kSteps ? of.steps - first : kSteps);
    series.steps_into(move, first, count);
    double square = 0, product = 1;
    int64_t exponent = 0;
    bool bad = false;
    for (int c = 0; c < count; ++c) {
      const int64_t t = first + c;
      if (t > 0) state.predict(move, c, series.variance);
      if (kept && c == 0) state.put(kept + first / kSteps * M::kept);
      const double r = series.noise(t), S = state.P[0] + r, inverse = 1 / S, v = series.y[t] - state.m[0];
      square += v * inverse * v;
      int64_t bits = bits_of(S);
      bad |= !(S > 0) || !(S < 1e308);
      exponent += (bits >> 52) - 1023;
      product *= number_of<double>((bits & 0xfffffffffffffLL) | (int64_t(1023) << 52));
      state.update(v, r, inverse);
    }
    total += square + std::log(product) + 0.6931471805599453 * double(exponent) + 1.8378770664093453 * count;
    if (bad) total = std::nan("");
  }
  of.log_likelihood[s] = T(-0.5 * total);
}

// The predicted moments of a segment's steps, computed again from those of its first.
template <class T, int O>
struct Segment {
  using M = Matern<O>;
  M move;
  double predicted[kSteps][M::kept];
  Moments<O> state;
  int64_t first;

  void open(const Series<T>& series, const T* kept, int64_t at, int count) {
    first = at;
    series.steps_into(move, first, count);
    state.take(kept + first / kSteps * M::kept);
  }
  VARAX_INLINE void step(const Series<T>& series, int c) {
    if (c > 0) state.predict(move, c, series.variance);
    state.put(predicted[c]);
    const double r = series.noise(first + c);
    state.update(series.y[first + c] - state.m[0], r, 1 / (state.P[0] + r));
  }
};

// What the way back carries from a time to the one before, and sums.
template <class T, int O>
struct Back {
  using M = Matern<O>;
  static constexpr int n = M::n;
  double D[M::packed] = {}, dm[n] = {};  // cotangents of the filtered moments, later of the predicted
  double later = 0;                      // of the next time, by its distance from this one
  double variance = 0, rate = 0, noise = 0;  // sums of a segment

  VARAX_INLINE void step(const MaternProblem<T>& of, const Series<T>& series, const Segment<T, O>& segment, int c,
                         int64_t s, double l) {
    const int64_t t = segment.first + c;
    const M& move = segment.move;
    const double *m = segment.predicted[c], *P = m + n;
    const double inverse = 1 / (P[0] + series.noise(t)), u = (series.y[t] - m[0]) * inverse;
    double K[n], g[n], k = 0, q = 0;
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) K[i] = P[i] * inverse;
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) {
      k += K[i] * dm[i];
      g[i] = 0;
#pragma GCC unroll 6
      for (int j = 0; j < n; ++j) g[i] += D[M::at(i, j)] * K[j];
    }
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) q += K[i] * g[i];
    const double dy = k - l * u, C = 0.5 * l * (u * u - inverse);
    if (of.d_y) of.d_y[s * of.steps + t] = T(dy);
    const double d_sd = 2 * series.noise_sd[t * series.noise_step] * (q - k * u + C);
    if (of.noise_step) {
      if (of.d_noise_sd) of.d_noise_sd[s * of.steps + t] = T(d_sd);
    } else {
      noise += d_sd;
    }
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) {
      double z = 0.5 * u * (dm[i] - (i == 0 ? k : 0)) - g[i] + (i == 0 ? 0.5 * (q + C) : 0);
      D[i] += i == 0 ? 2 * z : z;
    }
    dm[0] -= dy;

    if (t == 0) {
#pragma GCC unroll 6
      for (int i = 0; i < n; ++i)
#pragma GCC unroll 6
        for (int j = 0; j < n; ++j) variance += D[M::at(i, j)] * M::stationary(i, j);
      if (of.d_times) of.d_times[s * of.steps] = T(-later);
      return;
    }
    double dx = 0;
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i)
#pragma GCC unroll 6
      for (int k2 = 0; k2 < n; ++k2) {
        if (M::F(i, k2) == 0) continue;
        double sum = 0;
#pragma GCC unroll 6
        for (int j = 0; j < n; ++j)
          sum += D[M::at(i, j)] * (P[M::at(k2, j)] - series.variance * M::stationary(k2, j));
        dx += M::F(i, k2) * (2 * sum + dm[i] * m[k2]);
      }
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i)
#pragma GCC unroll 6
      for (int j = i; j < n; ++j) variance += (i == j ? 1 : 2) * D[M::at(i, j)] * move.q[M::at(i, j)][c];
    rate += dx * move.x[c];
    if (of.d_times) of.d_times[s * of.steps + t] = T(series.lambda * dx - later);
    later = series.lambda * dx;
    double B[n][n], back[n];
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i)
#pragma GCC unroll 6
      for (int j = 0; j < n; ++j) {
        B[i][j] = 0;
#pragma GCC unroll 6
        for (int k2 = 0; k2 < n; ++k2) B[i][j] += D[M::at(i, k2)] * move.a[k2 * n + j][c];
      }
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) {
      back[i] = 0;
#pragma GCC unroll 6
      for (int k2 = 0; k2 < n; ++k2) back[i] += move.a[k2 * n + i][c] * dm[k2];
#pragma GCC unroll 6
      for (int j = i; j < n; ++j) {
        double sum = 0;
#pragma GCC unroll 6
        for (int k2 = 0; k2 < n; ++k2) sum += move.a[k2 * n + i][c] * B[k2][j];
        D[M::at(i, j)] = sum;
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) dm[i] = back[i];
  }
};

// A segment goes back while the one before it is filtered again: each waits for its own results alone, so the
// second costs little beside the first, and less than moments that go through memory.
template <class T, int O>
void adjoint(const MaternProblem<T>& of, int64_t s) {
  using M = Matern<O>;
  const Series<T> series(of, s, M::rate());
  const int64_t segments = matern_segments(of.steps);
  const T* kept = of.kept + s * segments * M::kept;
  const double l = of.d_log_likelihood[s];
  Segment<T, O> both[2];
  Back<T, O> back;
  double d_variance = 0, d_rate = 0, d_noise = 0;
  int count = int(of.steps - (segments - 1) * kSteps);
  if (segments > 0) {
    Segment<T, O>& last = both[(segments - 1) & 1];
    last.open(series, kept, (segments - 1) * kSteps, count);
    for (int c = 0; c < count; ++c) last.step(series, c);
  }
  for (int64_t at = segments - 1; at >= 0; --at) {
    const Segment<T, O>& now = both[at & 1];
    Segment<T, O>& before = both[(at + 1) & 1];
    back.variance = back.rate = back.noise = 0;
    int c = count - 1;
    if (at > 0) {
      before.open(series, kept, (at - 1) * kSteps, kSteps);
      for (int i = 0; i < kSteps; ++i) {
        before.step(series, i);
        if (c >= 0) back.step(of, series, now, c--, s, l);
      }
    }
    while (c >= 0) back.step(of, series, now, c--, s, l);
    d_variance += back.variance, d_rate += back.rate, d_noise += back.noise;
    count = kSteps;
  }
  of.d_variance[s] = T(d_variance);
  of.d_length_scale[s] = T(-d_rate / series.length_scale);
  if (of.d_noise_sd && !of.noise_step) of.d_noise_sd[s] = T(d_noise);
}

}  // namespace

template <class T, bool back>
static void run(const MaternProblem<T>* of, int64_t s) {
  if (of->order == 0) back ? adjoint<T, 0>(*of, s) : value<T, 0>(*of, s);
  if (of->order == 1) back ? adjoint<T, 1>(*of, s) : value<T, 1>(*of, s);
  if (of->order == 2) back ? adjoint<T, 2>(*of, s) : value<T, 2>(*of, s);
}

void matern_value_f32(const MaternProblem<float>* of, int64_t s) { run<float, false>(of, s); }
void matern_value_f64(const MaternProblem<double>* of, int64_t s) { run<double, false>(of, s); }
void matern_adjoint_f32(const MaternProblem<float>* of, int64_t s) { run<float, true>(of, s); }
void matern_adjoint_f64(const MaternProblem<double>* of, int64_t s) { run<double, true>(of, s); }

}  // namespace VARAX_ISA
}  // namespace varax
