#include "kalman_adjoint.h"
#include "kalman_pick.h"

namespace varax {
namespace VARAX_ISA {

void kalman_adjoint_f64(const KalmanAdjoint<double>* problem, int64_t group) {
  pick(problem->model, [&](auto x) {
    using X = typename decltype(x)::X;
    if constexpr (X::lanes > 1) {
      adjoint<X, true>(*problem, group);
    } else if constexpr (kMostFixed == 0) {
      problem->model.lanes ? adjoint<X, true>(*problem, group) : adjoint<X, false>(*problem, group);
    } else {
      adjoint<X, false>(*problem, group);
    }
  });
}

}  // namespace VARAX_ISA
}  // namespace varax
