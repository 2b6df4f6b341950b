#include "kalman_value.h"
#include "kalman_pick.h"

namespace varax {
namespace VARAX_ISA {

void kalman_value_f64(const KalmanValue<double>* problem, int64_t group) {
  pick(problem->model, [&](auto x) { value<typename decltype(x)::X>(*problem, group); });
}

int64_t kalman_groups_f64(const KalmanModel<double>* of) { return groups(*of); }

}  // namespace VARAX_ISA
}  // namespace varax
