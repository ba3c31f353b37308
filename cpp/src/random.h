#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lit_sft {

/// Python's `random.Random(text)`: the same numbers for the same text, so that drawn answers are those of Python.
///
/// Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), seeded as CPython seeds it from a string.
class Random {
   public:
    explicit Random(std::string_view seed);

    /// From 0 up to 1, with 53 bits.
    double random();

   private:
    static constexpr std::size_t kWords = 624;

    void seed_by_number(std::uint32_t number);
    std::uint32_t next();
    void refill();

    std::array<std::uint32_t, kWords> state_{};
    std::size_t at_ = kWords;
};

}  // namespace lit_sft
