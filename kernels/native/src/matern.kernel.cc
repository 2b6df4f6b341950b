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

template <class T, int O>
void value(const MaternProblem<T>& of, int64_t s) {
  using M = Matern<O>;
  constexpr int n = M::n;
  const Series<T> series(of, s, M::rate());
  T* kept = of.kept ? of.kept + s * of.steps * M::kept : nullptr;
  M move;
  double m[n] = {}, P[M::packed], total = 0;
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i)
#pragma GCC unroll 6
    for (int j = i; j < n; ++j) P[M::at(i, j)] = series.variance * M::stationary(i, j);
  for (int64_t first = 0; first < of.steps; first += kSteps) {
    const int count = int(of.steps - first < kSteps ? of.steps - first : kSteps);
    series.steps_into(move, first, count);
    double square = 0, product = 1;
    int64_t exponent = 0;
    bool bad = false;
    for (int c = 0; c < count; ++c) {
      const int64_t t = first + c;
      if (t > 0) {
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
            double sum = series.variance * move.q[M::at(i, j)][c];
#pragma GCC unroll 6
            for (int k = 0; k < n; ++k) sum += B[i][k] * move.a[j * n + k][c];
            P[M::at(i, j)] = sum;
          }
        }
      }
      if (kept) {
#pragma GCC unroll 6
        for (int i = 0; i < n; ++i) kept[t * M::kept + i] = T(m[i]);
#pragma GCC unroll 6
        for (int i = 0; i < M::packed; ++i) kept[t * M::kept + n + i] = T(P[i]);
      }
      const double r = series.noise(t), S = P[0] + r, inverse = 1 / S, v = series.y[t] - m[0], u = v * inverse;
      square += u * v;
      int64_t bits = bits_of(S);
      bad |= !(S > 0) || !(S < 1e308);
      exponent += (bits >> 52) - 1023;
      product *= number_of<double>((bits & 0xfffffffffffffLL) | (int64_t(1023) << 52));
      // f itself is observed: its row of the covariance shrinks by r / S.
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
    total += square + std::log(product) + 0.6931471805599453 * double(exponent) + 1.8378770664093453 * count;
    if (bad) total = std::nan("");
  }
  of.log_likelihood[s] = T(-0.5 * total);
}

template <class T, int O>
void adjoint(const MaternProblem<T>& of, int64_t s) {
  using M = Matern<O>;
  constexpr int n = M::n;
  const Series<T> series(of, s, M::rate());
  const T* kept = of.kept + s * of.steps * M::kept;
  T *d_times = of.d_times + s * of.steps, *d_y = of.d_y + s * of.steps;
  T* d_noise = of.d_noise_sd + s * (of.noise_step ? of.steps : 1);
  const double l = of.d_log_likelihood[s], variance = series.variance;
  M move;
  double D[M::packed] = {}, dm[n] = {};  // cotangents of the filtered moments, later of the predicted
  double d_variance = 0, d_rate = 0, d_constant_noise = 0, later = 0;
  int64_t last = (of.steps - 1) / kSteps * kSteps;
  for (int64_t first = last; first >= 0; first -= kSteps) {
    const int count = int(of.steps - first < kSteps ? of.steps - first : kSteps);
    series.steps_into(move, first, count);
    double block_variance = 0, block_rate = 0, block_noise = 0;
    for (int c = count - 1; c >= 0; --c) {
      const int64_t t = first + c;
      double m[n], P[M::packed];
#pragma GCC unroll 6
      for (int i = 0; i < n; ++i) m[i] = kept[t * M::kept + i];
#pragma GCC unroll 6
      for (int i = 0; i < M::packed; ++i) P[i] = kept[t * M::kept + n + i];
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
      d_y[t] = T(dy);
      const double sd = series.noise_sd[t * series.noise_step], d_sd = 2 * sd * (q - k * u + C);
      if (of.noise_step) {
        d_noise[t] = T(d_sd);
      } else {
        block_noise += d_sd;
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
          for (int j = 0; j < n; ++j) block_variance += D[M::at(i, j)] * M::stationary(i, j);
        d_times[0] = T(-later);
        continue;
      }
      double dx = 0;
#pragma GCC unroll 6
      for (int i = 0; i < n; ++i)
#pragma GCC unroll 6
        for (int k2 = 0; k2 < n; ++k2) {
          if (M::F(i, k2) == 0) continue;
          double sum = dm[i] * m[k2];
#pragma GCC unroll 6
          for (int j = 0; j < n; ++j)
            sum += 2 * D[M::at(i, j)] * (P[M::at(k2, j)] - variance * M::stationary(k2, j));
          dx += M::F(i, k2) * sum;
        }
#pragma GCC unroll 6
      for (int i = 0; i < n; ++i)
#pragma GCC unroll 6
        for (int j = 0; j < n; ++j) block_variance += D[M::at(i, j)] * move.q[M::at(i, j)][c];
      block_rate += dx * move.x[c];
      d_times[t] = T(series.lambda * dx - later);
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
    d_variance += block_variance, d_rate += block_rate, d_constant_noise += block_noise;
  }
  of.d_variance[s] = T(d_variance);
  of.d_length_scale[s] = T(-d_rate / series.length_scale);
  if (!of.noise_step) d_noise[0] = T(d_constant_noise);
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
