// The numbers by which Python names stationary covariances.
#pragma once

namespace varax {

enum Kind : int { kRbf = 0, kMatern12 = 1, kMatern32 = 2, kMatern52 = 3, kRationalQuadratic = 4, kKinds = 5 };

}  // namespace varax
