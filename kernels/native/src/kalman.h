// The Kalman filter's log-likelihood and its adjoint: what the handlers tell the loops.
#pragma once

#include "varax.h"

namespace varax {

constexpr int kKalmanMostStates = 8;
constexpr int kKalmanMostObserved = 8;
constexpr int kKalmanMostInLanes = 6;  // states
constexpr int kKalmanSegment = 16;     // steps from one checkpoint to the next
constexpr int kKalmanTogether = 32;    // series that share their covariances, in one group

// An array of a problem: `step` elements from one time to the next (0: the same at all times), `series`
// from one series to the next (0: shared). data == nullptr: not given, or not wanted.
template <class T>
struct Strided {
  T* data = nullptr;
  int64_t step = 0;
  int64_t series = 0;
};

template <class T>
struct KalmanModel {
  int64_t n, m, steps, batch;
  bool lanes;  // a series in each lane of a vector, where there are vectors
  Strided<const T> y, A, Q, H, R, m0, P0, b, d;
  Strided<const uint8_t> mask;
};

template <class T>
struct KalmanValue {
  KalmanModel<T> model;
  T* log_likelihood;                           // [batch]
  Strided<T> mean, cov, gain, white, precision;  // of every step, or not wanted
  Strided<T> checkpoint;                         // predicted mean and covariance of the steps kKalmanSegment k > 0
};

template <class T>
struct KalmanAdjoint {
  KalmanModel<T> model;
  Strided<const T> mean, cov, gain, white, precision;  // or, for lanes:
  Strided<const T> checkpoint, mark;
  Strided<const T> d_log_likelihood, d_mean, d_cov;  // may be absent
  Strided<const T> sums;  // KalmanMeansAdjoint's, of many series with these covariances; or absent
  Strided<T> d_y, d_A, d_Q, d_H, d_R, d_m0, d_P0, d_b, d_d;  // step 0: summed over time
};

template <class T>
struct KalmanSmoother {
  KalmanModel<T> model;
  Strided<const T> mean, cov;  // filtered
  Strided<T> to_mean, to_cov;  // smoothed
};

template <class T>
struct KalmanSample {
  KalmanModel<T> model;
  Strided<const T> mean, cov;  // filtered
  int64_t draws;               // of each series, one behind the other
  Strided<const T> noise;
  Strided<T> to;
};

template <class T>
struct KalmanSmootherAdjoint {
  KalmanModel<T> model;
  Strided<const T> mean, cov, smoothed_mean, smoothed_cov;
  Strided<const T> d_mean, d_cov;  // of the smoothed moments, or absent
  Strided<T> to_mean, to_cov;      // of the filtered moments
  Strided<T> d_A, d_Q, d_b;        // step 0: summed over time
};

// Series whose covariances are the same: gains and S^-1 of every step are given.
template <class T>
struct KalmanMeans {
  KalmanModel<T> model;
  Strided<const T> gain, precision;  // shared
  T* square;                         // [batch], sum of v' S^-1 v
  Strided<T> mean, white;            // or not wanted
  Strided<T> checkpoint;             // predicted mean of the steps kKalmanSegment k > 0, or not wanted
};

template <class T>
struct KalmanMeansAdjoint {
  KalmanModel<T> model;
  Strided<const T> gain, precision, checkpoint;
  Strided<const T> d_log_likelihood, d_mean;  // may be absent
  Strided<T> d_y, d_m0, d_b, d_d;             // of each series
  // Summed over a group's series; those of A and H without what comes by way of the covariances.
  Strided<T> d_A, d_H;
  Strided<T> sums;  // u m_f~', k u', l u u' of every step: what the covariances' cotangents want
};

}  // namespace varax

// The loops do one group of series: those of a vector's lanes, or one. The order of summation depends on the
// problem alone.
VARAX_DECLARE(
    int64_t kalman_groups_f32(const KalmanModel<float>* of);
    int64_t kalman_groups_f64(const KalmanModel<double>* of);
    void kalman_value_f32(const KalmanValue<float>* problem, int64_t group);
    void kalman_value_f64(const KalmanValue<double>* problem, int64_t group);
    void kalman_adjoint_f32(const KalmanAdjoint<float>* problem, int64_t group);
    void kalman_adjoint_f64(const KalmanAdjoint<double>* problem, int64_t group);
    void kalman_smoother_f32(const KalmanSmoother<float>* problem, int64_t group);
    void kalman_smoother_f64(const KalmanSmoother<double>* problem, int64_t group);
    void kalman_sample_f32(const KalmanSample<float>* problem, int64_t group);
    void kalman_sample_f64(const KalmanSample<double>* problem, int64_t group);
    void kalman_smoother_adjoint_f32(const KalmanSmootherAdjoint<float>* problem, int64_t group);
    void kalman_smoother_adjoint_f64(const KalmanSmootherAdjoint<double>* problem, int64_t group);
    void kalman_means_f32(const KalmanMeans<float>* problem, int64_t group);
    void kalman_means_f64(const KalmanMeans<double>* problem, int64_t group);
    void kalman_means_adjoint_f32(const KalmanMeansAdjoint<float>* problem, int64_t group);
    void kalman_means_adjoint_f64(const KalmanMeansAdjoint<double>* problem, int64_t group);)
