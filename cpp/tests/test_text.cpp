// Text: what does not need an exported folder.

#include <doctest/doctest.h>

#include "json_file.h"
#include "lit_sft/error.h"
#include "sha256.h"
#include "unicode.h"

using namespace lit_sft;

TEST_CASE("bytes that are not UTF-8 become U+FFFD as in Python and as in sentencepiece") {
    CHECK(well_formed("a\xE4\xBD z", Replaced::longest_beginnings) == "a\uFFFD z");
    CHECK(well_formed("a\xE4\xBD z", Replaced::bytes) == "a\uFFFD\uFFFD z");
    CHECK(well_formed("\xED\xA0\x80", Replaced::longest_beginnings) == "\uFFFD\uFFFD\uFFFD");
    CHECK(well_formed("\xF0\x9F\x99", Replaced::longest_beginnings) == "\uFFFD");
    CHECK(well_formed("\xC0\x80\xFF", Replaced::longest_beginnings) == "\uFFFD\uFFFD\uFFFD");
    CHECK(well_formed("\u4F60\U0001F642", Replaced::bytes) == "\u4F60\U0001F642");
}

TEST_CASE("blanks are those of Python") {
    CHECK(stripped("\u3000 \x1C\u0085 a b \u2028\t\n") == "a b");
    CHECK(stripped("\u200B") == "\u200B");
    CHECK(stripped(" \n ").empty());
    CHECK(without_blanks_left(" a ") == "a ");
    CHECK(without_blanks_right(" a\u00A0") == " a");
}

TEST_CASE("text for a terminal cannot steer it") { CHECK(harmless("a\x1B[31m\r\u202Eb\tc\n") == "a[31mb\tc\n"); }

TEST_CASE("stretches of code points") {
    const CodePoints letters({{U'a', U'c'}, {U'x', U'x'}});
    CHECK(letters.has(U'a'));
    CHECK(letters.has(U'c'));
    CHECK_FALSE(letters.has(U'd'));
    CHECK(letters.has(U'x'));
    CHECK_FALSE(letters.has(U'A'));
}

TEST_CASE("SHA-256 of the standard's examples") {
    CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(sha256(std::string(200, 'a')) == "c2a908d98f5df987ade41b5fce213067efbcc21ef2240212a41e54b5e7c28ae5");
}

TEST_CASE("JSON of others may be as deep as any of ours, brackets within its texts do not count") {
    const auto nested = [](std::size_t depth) {
        return R"({"a": )" + std::string(depth, '[') + std::string(depth, ']') + "}";
    };
    CHECK(JsonObject::parse(nested(63), "line 1").has("a"));
    CHECK(JsonObject::parse(R"({"a": "\"[)" + std::string(100, '[') + R"(", "b": []})", "line 1").has("b"));
    CHECK_THROWS_AS(JsonObject::parse(nested(64), "line 1"), UserError);
}
