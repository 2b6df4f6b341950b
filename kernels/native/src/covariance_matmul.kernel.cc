// Covariance matrix times vectors: a vector of rows meets a tile of columns; the tile's covariances stay in
// the first cache. Sums over a tile are in the operands' type, sums over tiles in double.
#include "covariance_matmul.h"

#include "gp_profile.h"

namespace varax {
namespace VARAX_ISA {
namespace {

constexpr int kTile = 64;    // columns of a tile
constexpr int kUnroll = 4;   // columns that are computed together

template <class T>
struct Work {  // views of the workspace: doubles first
  typedef typename Vec<T>::type V;
  static constexpr int W = Vec<T>::width;
  double* rows;  // [max(k, d), W] sums over tiles
  T* x;          // [d, W]
  T* a;          // [k, W]
  T* tile;       // [kTile, W]
  T* more;       // [kTile, W]
  Work(double* work, int64_t d, int64_t k) {
    int64_t most = d > k ? d : k;
    rows = work;
    x = reinterpret_cast<T*>(work + most * W);
    a = x + d * W;
    tile = a + k * W;
    more = tile + kTile * W;
  }
  static int64_t size(int64_t d, int64_t k) {  // in doubles
    int64_t most = d > k ? d : k;
    return most * W + ((d + k + 2 * kTile) * W * sizeof(T) + 7) / 8;
  }
};

// Rows [i, i + W) of a row-major [last, d] array as [d, W]; past the end, the last row again.
template <class T>
void gather(const T* from, int64_t i, int64_t last, int64_t d, T* to) {
  constexpr int W = Vec<T>::width;
  for (int l = 0; l < W; ++l) {
    const T* row = from + (i + l < last ? i + l : last - 1) * d;
    for (int64_t q = 0; q < d; ++q) to[q * W + l] = row[q];
  }
}

// u[c] = sum_q (x_q - y_cq)^2 for `count` columns.
template <int count, class T>
inline void distances(const T* x, const T* y, int64_t d, typename Vec<T>::type* u) {
  typedef typename Vec<T>::type V;
  for (int c = 0; c < count; ++c) u[c] = V{};
  for (int64_t q = 0; q < d; ++q) {
    V at = load(x + q * Vec<T>::width);
    for (int c = 0; c < count; ++c) {
      V difference = at - y[c * d + q];
      u[c] += difference * difference;
    }
  }
}

// sums[c, :] += sum_j tile[j, :] b[j, c] for `columns` columns, in `chains` interleaved sums.
template <int columns, int chains, class T>
void multiply(const T* tile, const T* b, int64_t count, int64_t k, double* sums) {
  typedef typename Vec<T>::type V;
  constexpr int W = Vec<T>::width;
  V sum[chains][columns];
  for (int h = 0; h < chains; ++h)
    for (int c = 0; c < columns; ++c) sum[h][c] = V{};
  int64_t j = 0;
  for (; j + chains <= count; j += chains)
    for (int h = 0; h < chains; ++h)
      for (int c = 0; c < columns; ++c) sum[h][c] += load(tile + (j + h) * W) * b[(j + h) * k + c];
  for (; j < count; ++j)
    for (int c = 0; c < columns; ++c) sum[0][c] += load(tile + j * W) * b[j * k + c];
  for (int c = 0; c < columns; ++c) {
    for (int h = 1; h < chains; ++h) sum[0][c] += sum[h][c];
    for (int l = 0; l < W; ++l) sums[c * W + l] += static_cast<double>(sum[0][c][l]);
  }
}

template <int kind, class T>
void matmul(const CovarianceRows<T>& p, int64_t first, int64_t last, T* out, double* space) {
  typedef typename Vec<T>::type V;
  constexpr int W = Vec<T>::width;
  const int64_t d = p.d, k = p.k;
  Work<T> w(space, d, k);
  for (int64_t i = first; i < last; i += W) {
    gather(p.x, i, last, d, w.x);
    for (int64_t c = 0; c < k * W; ++c) w.rows[c] = 0;
    for (int64_t from = 0; from < p.m; from += kTile) {
      const int64_t count = from + kTile < p.m ? kTile : p.m - from;
      const T* y = p.y + from * d;
      const T* b = p.b + from * k;
      V u[kUnroll];
      int64_t j = 0;
      for (; j + kUnroll <= count; j += kUnroll) {
        distances<kUnroll>(w.x, y + j * d, d, u);
        for (int c = 0; c < kUnroll; ++c) store(w.tile + (j + c) * W, profile<kind>(u[c], p.extra));
      }
      for (; j < count; ++j) {
        distances<1>(w.x, y + j * d, d, u);
        store(w.tile + j * W, profile<kind>(u[0], p.extra));
      }
      int64_t c = 0;
      for (; c + 8 <= k; c += 8) multiply<8, 1>(w.tile, b + c, count, k, w.rows + c * W);
      for (; c + 4 <= k; c += 4) multiply<4, 1>(w.tile, b + c, count, k, w.rows + c * W);
      for (; c + 2 <= k; c += 2) multiply<2, 2>(w.tile, b + c, count, k, w.rows + c * W);
      for (; c < k; ++c) multiply<1, 4>(w.tile, b + c, count, k, w.rows + c * W);
    }
    const int64_t lanes = i + W < last ? W : last - i;
    for (int64_t l = 0; l < lanes; ++l)
      for (int64_t c = 0; c < k; ++c) out[(i + l) * k + c] = static_cast<T>(w.rows[c * W + l]);
  }
}

template <int kind, class T>
void gradient(const CovarianceRows<T>& p, int64_t first, int64_t last, T* dx, double* sums,
              double* space) {
  typedef typename Vec<T>::type V;
  typedef typename Vec<T>::bits I;
  constexpr int W = Vec<T>::width;
  const int64_t d = p.d, k = p.k;
  Work<T> w(space, d, k);
  for (int64_t i = first; i < last; i += W) {
    const int64_t lanes = i + W < last ? W : last - i;
    I real{};  // lanes that are rows; the others repeat the last row and must not be counted
    for (int64_t l = 0; l < lanes; ++l) real[l] = -1;
    gather(p.x, i, last, d, w.x);
    gather(p.a, i, last, k, w.a);
    for (int64_t q = 0; q < d * W; ++q) w.rows[q] = 0;
    for (int64_t from = 0; from < p.m; from += kTile) {
      const int64_t count = from + kTile < p.m ? kTile : p.m - from;
      const T* y = p.y + from * d;
      const T* b = p.b + from * k;
      V value{}, extra{};
      // tile = (a_i . b_j) 2 dk/du, what multiplies x - y.
      for (int64_t j = 0; j < count; ++j) {
        V u, weight{}, cov, slope, by_extra;
        distances<1>(w.x, y + j * d, d, &u);
        for (int64_t c = 0; c < k; ++c) weight += load(w.a + c * W) * b[j * k + c];
        profile_slopes<kind>(u, p.extra, &cov, &slope, &by_extra);
        value += weight * cov;
        if (kind == kRationalQuadratic) extra += weight * by_extra;
        store(w.tile + j * W, weight * slope * T(2));
      }
      for (int64_t q = 0; q < d; ++q) {
        V at = load(w.x + q * W), by_x{}, by_x2{}, by_scale{}, by_scale2{};
        int64_t j = 0;
        for (; j + 2 <= count; j += 2) {
          V one = at - y[j * d + q], two = at - y[(j + 1) * d + q];
          V push = load(w.tile + j * W) * one, push2 = load(w.tile + (j + 1) * W) * two;
          by_x += push;
          by_x2 += push2;
          by_scale += push * one;
          by_scale2 += push2 * two;
        }
        if (j < count) {
          V one = at - y[j * d + q], push = load(w.tile + j * W) * one;
          by_x += push;
          by_scale += push * one;
        }
        by_x += by_x2;
        by_scale += by_scale2;
        for (int l = 0; l < W; ++l) w.rows[q * W + l] += static_cast<double>(by_x[l]);
        sums[q] += lanes_sum<T>(real ? by_scale : V{});
      }
      sums[d] += lanes_sum<T>(real ? value : V{});
      if (kind == kRationalQuadratic) sums[d + 1] += lanes_sum<T>(real ? extra : V{});
    }
    for (int64_t l = 0; l < lanes; ++l)
      for (int64_t q = 0; q < d; ++q) dx[(i + l) * d + q] = static_cast<T>(w.rows[q * W + l]);
  }
}


}  // namespace

#define VARAX_COVARIANCE(T, suffix)                                                                   \
  int64_t covariance_workspace_##suffix(int64_t d, int64_t k) { return Work<T>::size(d, k); }         \
  void covariance_matmul_##suffix(const CovarianceRows<T>& p, int64_t first, int64_t last, T* out,    \
                                  double* work) {                                                     \
    VARAX_BY_KIND(p.kind, matmul, p, first, last, out, work)                                          \
  }                                                                                                   \
  void covariance_gradient_##suffix(const CovarianceRows<T>& p, int64_t first, int64_t last, T* dx,   \
                                    double* sums, double* work) {                                     \
    VARAX_BY_KIND(p.kind, gradient, p, first, last, dx, sums, work)                                   \
  }
VARAX_COVARIANCE(float, f32)
VARAX_COVARIANCE(double, f64)

}  // namespace VARAX_ISA
}  // namespace varax
