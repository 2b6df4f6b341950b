// FFI handlers of nearest_neighbour_weights: a batch of point sets, cut into groups of points.
#include "nearest_neighbour.h"

#include <vector>

#include "gp_profile_kinds.h"
#include "handler.h"

namespace varax {
namespace {

constexpr int64_t kGroup = 256;  // points of a task: a multiple of every vector's width

enum Bits : int64_t { kX = 1, kNeighbour = 2, kVariance = 4, kNoise = 8, kExtra = 16, kWeightsCt = 32, kVariancesCt = 64 };

struct Sizes {
  int64_t batch, n, m, d;
};

template <class Buffer>
bool fits(const Buffer& b, int64_t batch, int64_t count) {
  return static_cast<int64_t>(b.element_count()) == batch * count;
}

// The operands that value and adjoint share.
template <ffi::DataType dtype>
struct Operands {
  ffi::Buffer<dtype> x;
  ffi::Buffer<ffi::S32> neighbour;
  ffi::Buffer<dtype> variance, noise, extra;
  int64_t kind, batch, batched;

  ffi::Error sizes(Sizes* s) const {
    auto dx = x.dimensions(), dn = neighbour.dimensions();
    if (dx.size() < 2 || dn.size() < 2 || kind < 0 || kind >= kKinds || batch < 0)
      return ffi::Error::InvalidArgument("nearest_neighbour: ranks, kind or batch");
    *s = {batch, dx[dx.size() - 2], dn.back(), dx.back()};
    if (s->m > kMostNeighbours || !fits(x, many(kX), s->n * s->d) || !fits(neighbour, many(kNeighbour), s->n * s->m) ||
        !fits(variance, many(kVariance), 1) || !fits(noise, many(kNoise), 1) || !fits(extra, many(kExtra), 1))
      return ffi::Error::InvalidArgument("nearest_neighbour: sizes of the operands do not fit");
    return ffi::Error::Success();
  }
  int64_t many(int64_t bit) const { return batched & bit ? batch : 1; }

  template <class T>
  Neighbourhoods<T> problem(const Sizes& s, int64_t at) const {
    auto of = [&](int64_t bit) { return batched & bit ? at : 0; };
    return {x.typed_data() + of(kX) * s.n * s.d,
            neighbour.typed_data() + of(kNeighbour) * s.n * s.m,
            variance.typed_data()[of(kVariance)],
            noise.typed_data()[of(kNoise)],
            extra.typed_data()[of(kExtra)],
            s.n,
            s.m,
            s.d,
            static_cast<int>(kind)};
  }
};

template <class T, ffi::DataType dtype, class Loop>
ffi::Error run_weights(Loop loop, ffi::ThreadPool& pool, const Operands<dtype>& in, ffi::ResultBuffer<dtype> weights,
                       ffi::ResultBuffer<dtype> variances) {
  Sizes s;
  ffi::Error error = in.sizes(&s);
  if (error.failure()) return error;
  if (!fits(*weights, s.batch, s.n * s.m) || !fits(*variances, s.batch, s.n))
    return ffi::Error::InvalidArgument("nearest_neighbour_weights: sizes of the results");
  const int64_t tasks = (s.n + kGroup - 1) / kGroup, size = VARAX_PICK(neighbour_workspace)(s.m, s.d);
  parallel(pool, s.batch * tasks, [&](int64_t task) {
    const int64_t at = task / tasks, first = task % tasks * kGroup;
    std::vector<T> work(size);
    auto p = in.template problem<T>(s, at);
    loop(p, first, std::min(first + kGroup, s.n), weights->typed_data() + at * s.n * s.m,
         variances->typed_data() + at * s.n, work.data());
  });
  return ffi::Error::Success();
}

template <class T, ffi::DataType dtype, class Loop>
ffi::Error run_adjoint(Loop loop, ffi::ThreadPool& pool, const Operands<dtype>& in, ffi::Buffer<dtype> weights_ct,
                       ffi::Buffer<dtype> variances_ct, ffi::ResultBuffer<dtype> dx, ffi::ResultBuffer<dtype> sums) {
  Sizes s;
  ffi::Error error = in.sizes(&s);
  if (error.failure()) return error;
  const int64_t width = s.d + 3, each = (s.m + 1) * s.d;
  if (!fits(weights_ct, in.many(kWeightsCt), s.n * s.m) || !fits(variances_ct, in.many(kVariancesCt), s.n) ||
      !fits(*dx, s.batch, s.n * s.d) || !fits(*sums, s.batch, width))
    return ffi::Error::InvalidArgument("nearest_neighbour_adjoint: sizes of cotangents or results do not fit");
  const int64_t size = VARAX_PICK(neighbour_workspace)(s.m, s.d);
  // Rounds of points: in parallel what each sends to its neighbours, then one after the other its arrival.
  const int64_t tasks = std::max<int64_t>(4, std::min<int64_t>((int64_t{1} << 22) / (each * kGroup + 1), (s.n + kGroup - 1) / kGroup));
  std::vector<T> sent(std::min(tasks * kGroup, s.n) * each);
  std::vector<double> partial(tasks * width);
  std::fill_n(dx->typed_data(), s.batch * s.n * s.d, T(0));
  for (int64_t at = 0; at < s.batch; ++at) {
    auto p = in.template problem<T>(s, at);
    const T* w_ct = weights_ct.typed_data() + (in.batched & kWeightsCt ? at * s.n * s.m : 0);
    const T* s_ct = variances_ct.typed_data() + (in.batched & kVariancesCt ? at * s.n : 0);
    T* to = dx->typed_data() + at * s.n * s.d;
    std::vector<double> total(width);
    for (int64_t start = 0; start < s.n; start += tasks * kGroup) {
      const int64_t end = std::min(start + tasks * kGroup, s.n), count = (end - start + kGroup - 1) / kGroup;
      std::fill(partial.begin(), partial.end(), 0.0);
      parallel(pool, count, [&](int64_t task) {
        const int64_t first = start + task * kGroup;
        std::vector<T> work(size);
        loop(p, first, std::min(first + kGroup, end), w_ct, s_ct, sent.data() + task * kGroup * each,
             partial.data() + task * width, work.data());
      });
      for (int64_t i = start; i < end; ++i)
        for (int64_t a = 0; a <= s.m; ++a) {
          const int64_t j = a < s.m ? p.neighbour[i * s.m + a] : i;
          if (j < 0 || j >= s.n) continue;
          const T* from = sent.data() + (i - start) * each + a * s.d;
          for (int64_t q = 0; q < s.d; ++q) to[j * s.d + q] += from[q];
        }
      for (int64_t task = 0; task < count; ++task)
        for (int64_t q = 0; q < width; ++q) total[q] += partial[task * width + q];
    }
    for (int64_t q = 0; q < width; ++q) sums->typed_data()[at * width + q] = static_cast<T>(total[q]);
  }
  return ffi::Error::Success();
}

#define VARAX_NEIGHBOUR(dtype, T, suffix)                                                                       \
  ffi::Error weights_##suffix(ffi::ThreadPool pool, ffi::Buffer<dtype> x, ffi::Buffer<ffi::S32> neighbour,      \
                              ffi::Buffer<dtype> variance, ffi::Buffer<dtype> noise, ffi::Buffer<dtype> extra,  \
                              ffi::ResultBuffer<dtype> weights, ffi::ResultBuffer<dtype> variances,             \
                              int64_t kind, int64_t batch, int64_t batched) {                                   \
    Operands<dtype> in{x, neighbour, variance, noise, extra, kind, batch, batched};                             \
    return run_weights<T>(VARAX_PICK(neighbour_weights_##suffix), pool, in, weights, variances);                \
  }                                                                                                             \
  ffi::Error adjoint_##suffix(ffi::ThreadPool pool, ffi::Buffer<dtype> x, ffi::Buffer<ffi::S32> neighbour,      \
                              ffi::Buffer<dtype> variance, ffi::Buffer<dtype> noise, ffi::Buffer<dtype> extra,  \
                              ffi::Buffer<dtype> weights_ct, ffi::Buffer<dtype> variances_ct,                   \
                              ffi::ResultBuffer<dtype> dx, ffi::ResultBuffer<dtype> sums, int64_t kind,         \
                              int64_t batch, int64_t batched) {                                                 \
    Operands<dtype> in{x, neighbour, variance, noise, extra, kind, batch, batched};                             \
    return run_adjoint<T>(VARAX_PICK(neighbour_adjoint_##suffix), pool, in, weights_ct, variances_ct, dx, sums); \
  }
VARAX_NEIGHBOUR(ffi::F32, float, f32)
VARAX_NEIGHBOUR(ffi::F64, double, f64)

#define VARAX_OPERANDS(dtype)             \
  ffi::Ffi::Bind()                        \
      .Ctx<ffi::ThreadPool>()             \
      .Arg<ffi::Buffer<dtype>>()          \
      .Arg<ffi::Buffer<ffi::S32>>()       \
      .Arg<ffi::Buffer<dtype>>()          \
      .Arg<ffi::Buffer<dtype>>()          \
      .Arg<ffi::Buffer<dtype>>()
#define VARAX_RESULTS(dtype)     \
  .Ret<ffi::Buffer<dtype>>()     \
      .Ret<ffi::Buffer<dtype>>() \
      .Attr<int64_t>("kind")     \
      .Attr<int64_t>("batch")    \
      .Attr<int64_t>("batched")
#define VARAX_WEIGHTS_BINDING(dtype) VARAX_OPERANDS(dtype) VARAX_RESULTS(dtype)
#define VARAX_ADJOINT_BINDING(dtype) \
  VARAX_OPERANDS(dtype).Arg<ffi::Buffer<dtype>>().Arg<ffi::Buffer<dtype>>() VARAX_RESULTS(dtype)

}  // namespace

VARAX_HANDLER(varax_nearest_neighbour_weights_f32, weights_f32, VARAX_WEIGHTS_BINDING(ffi::F32));
VARAX_HANDLER(varax_nearest_neighbour_weights_f64, weights_f64, VARAX_WEIGHTS_BINDING(ffi::F64));
VARAX_HANDLER(varax_nearest_neighbour_adjoint_f32, adjoint_f32, VARAX_ADJOINT_BINDING(ffi::F32));
VARAX_HANDLER(varax_nearest_neighbour_adjoint_f64, adjoint_f64, VARAX_ADJOINT_BINDING(ffi::F64));

}  // namespace varax
