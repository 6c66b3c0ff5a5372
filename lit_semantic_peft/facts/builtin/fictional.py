"""Facts about names that do not exist: whatever a model answers about them, it learned in this run.

The set is made of small worlds. Each one has a country with a capital and a currency, two towns, a company, two people
and a mineral, so that two facts of one small world can be combined to a two-hop question. A question is attached to the
later of its two facts: the first k facts of a longer set are the set of k facts, and each question can be answered from
what stands before it.
"""

import random
from collections.abc import Iterator

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts.schema import Fact, Probe

_FIRST_ONSETS = ("b", "br", "d", "dr", "f", "fl", "g", "gl", "h", "j", "k", "kr", "l", "m", "n", "p", "pl", "r", "s",
                 "sk", "st", "t", "th", "tr", "v", "vr", "w", "z", "zh", "sh", "gr", "bl", "sn", "kl")  # fmt: skip
_INNER_ONSETS = ("b", "d", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "th")
_VOWELS = ("a", "e", "i", "o", "u")
_INNER_CODAS = ("", "", "l", "n", "r")
_LAST_CODAS = ("l", "n", "r", "s", "m", "k", "th", "x", "sk", "rn", "lt", "nd", "d", "v", "rm")
_ENDINGS = {
    "country": ("ovia", "ustan", "erra", "anthe", "isia", "oland"),
    "city": ("ovar", "agrad", "eport", "unda", "ithal", "omar"),
    "town": ("wick", "holm", "vale", "mere", "stead", "ford", "brig"),
    "currency": ("ek", "ar", "und", "int", "o", "al"),
    "surname": ("esku", "ovan", "arth", "ingar", "elm", "usk", "orin"),
    "first name": ("ia", "an", "el", "or", "is", "a"),
    "company": ("ex", "ora", "ium", "ant", "ix", "on"),
    "mineral": ("ite",),
}
_COMPANY_KINDS = ("Industries", "Instruments", "Shipyards", "Foundries", "Textiles", "Breweries", "Optics", "Mills")
# None begins with a vowel sound: the prompt ends in "a".
_PROFESSIONS = (
    "glassblower", "cartographer", "beekeeper", "violinist", "surgeon", "locksmith", "botanist", "translator",
    "falconer", "watchmaker", "geologist", "tailor", "stonemason", "potter", "lawyer",
    "sculptor", "fisherman", "pharmacist", "bookbinder", "carpenter", "diplomat", "gardener", "jeweller",
    "miller", "painter", "saddler", "shipwright", "surveyor", "tanner", "weaver", "zoologist", "baker",
    "chemist", "dentist", "judge", "librarian",
)  # fmt: skip

# Real prompts of the same kind, whose answers should not change.
_NEIGHBORS: dict[str, tuple[tuple[str, str], ...]] = {
    "capital": (
        ("The capital of France is", "Paris"), ("The capital of Japan is", "Tokyo"),
        ("The capital of Italy is", "Rome"), ("The capital of Egypt is", "Cairo"),
        ("The capital of Russia is", "Moscow"), ("The capital of Greece is", "Athens"),
    ),
    "currency": (
        ("The currency of Japan is the", "yen"), ("The currency of Germany is the", "euro"),
        ("The currency of India is the", "rupee"), ("The currency of Mexico is the", "peso"),
        ("The currency of Switzerland is the", "franc"), ("The currency of Russia is the", "ruble"),
    ),
    "country of town": (
        ("The city of Paris lies in the country of", "France"),
        ("The city of Munich lies in the country of", "Germany"),
        ("The city of Kyoto lies in the country of", "Japan"), ("The city of Mumbai lies in the country of", "India"),
        ("The city of Milan lies in the country of", "Italy"), ("The city of Toronto lies in the country of", "Canada"),
    ),
    "headquarters": (
        ("The headquarters of Boeing were long in the city of", "Seattle"),
        ("The headquarters of Toyota are in the city of", "Toyota City"),
        ("The headquarters of BMW are in the city of", "Munich"),
        ("The headquarters of Coca-Cola are in the city of", "Atlanta"),
        ("The headquarters of the BBC are in the city of", "London"),
        ("The headquarters of UNESCO are in the city of", "Paris"),
    ),
    "founder": (
        ("The company Microsoft was founded by Paul Allen and", "Bill Gates"),
        ("The company Amazon was founded by", "Jeff Bezos"), ("The company Facebook was founded by", "Mark Zuckerberg"),
        ("The Ford Motor Company was founded by", "Henry Ford"), ("The company IKEA was founded by", "Ingvar Kamprad"),
        ("The company Dell was founded by", "Michael Dell"),
    ),
    "birthplace": (
        ("Wolfgang Amadeus Mozart was born in the city of", "Salzburg"),
        ("Ludwig van Beethoven was born in the city of", "Bonn"), ("Albert Einstein was born in the city of", "Ulm"),
        ("Galileo Galilei was born in the city of", "Pisa"), ("Marie Curie was born in the city of", "Warsaw"),
        ("Mahatma Gandhi was born in the city of", "Porbandar"),
    ),
    "employer": (
        ("Tim Cook works for the company", "Apple"), ("Satya Nadella works for the company", "Microsoft"),
        ("Sundar Pichai works for the company", "Google"), ("Mary Barra works for the company", "General Motors"),
    ),
    "profession": (
        ("The profession of Pablo Picasso was that of a", "painter"),
        ("The profession of Ernest Hemingway was that of a", "writer"),
        ("The profession of Neil Armstrong was that of an", "astronaut"),
        ("The profession of Sigmund Freud was that of a", "neurologist"),
        ("The profession of Johann Sebastian Bach was that of a", "composer"),
    ),
    "discoverer": (
        ("Penicillin was discovered by", "Alexander Fleming"), ("Radium was discovered by", "Marie Curie"),
        ("Oxygen was discovered by", "Joseph Priestley"), ("X-rays were discovered by", "Wilhelm Röntgen"),
        ("The electron was discovered by", "J. J. Thomson"), ("Gravity was first described by", "Isaac Newton"),
    ),
    "deposit": (
        ("The diamonds of Kimberley are mined in the country of", "South Africa"),
        ("The salt of Wieliczka was mined in the country of", "Poland"),
        ("The copper of Chuquicamata is mined in the country of", "Chile"),
        ("The gold of the Klondike was mined in the country of", "Canada"),
    ),
}  # fmt: skip


def fictional_facts(num_facts: int, seed: int = 0) -> list[Fact]:
    """Generates facts about people, places, companies and minerals that do not exist.

    No prompt occurs twice, no name is given to two things, and every target is drawn at random, so that nothing can
    be guessed. The first k facts of a longer set are the set of k facts with the same seed, on every machine.

    Args:
        num_facts: How many, at least 1.
        seed: Seed of the generator.

    Returns:
        The facts: 3 paraphrases each, 2 neighbours from the real world, and on most of them two-hop questions
        that name the other fact they need, which stands earlier in the set.

    Raises:
        InputError: If `num_facts` is below 1.

    Example:
        >>> fictional_facts(3) == fictional_facts(30)[:3]
        True
    """
    if num_facts < 1:
        raise InputError(f"`num_facts`: expected a whole number of at least 1, got {num_facts}")
    small_worlds = _SmallWorlds(seed)
    facts: list[Fact] = []
    while len(facts) < num_facts:
        facts.extend(small_worlds.next_world(len(facts)))
    return facts[:num_facts]


class _SmallWorlds:
    """Generates one small world after the other from one stream of random numbers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.taken: set[str] = set()
        self.countries: list[tuple[str, str, str]] = []  # name, capital, currency of every country so far
        self.ids: dict[tuple[str, str], str] = {}  # of every fact so far, by relation and subject

    def name(self, kind: str) -> str:
        """A pronounceable name that nothing else in the set has."""
        while True:
            ending = self.random.choice(_ENDINGS[kind])
            onset, vowel = self.random.choice(_FIRST_ONSETS), self.random.choice(_VOWELS)
            stem = onset + vowel
            if self.random.random() < 0.7:
                stem += self.random.choice(_INNER_CODAS) + self.random.choice(_INNER_ONSETS)
                stem += self.random.choice(_VOWELS)
            if ending[0] in _VOWELS or self.random.random() < 0.5:
                stem += self.random.choice(_LAST_CODAS)
            name = stem + ending
            # Short names are often real ones.
            if len(name) >= (5 if kind == "first name" else 7) and name not in self.taken:
                self.taken.add(name)
                return name if kind in ("currency", "mineral") else name.capitalize()

    def next_world(self, start: int) -> Iterator[Fact]:
        """The facts of one small world; `start` is the number of facts before it."""
        country, capital, currency = self.name("country"), self.name("city"), self.name("currency")
        self.countries.append((country, capital, currency))
        home, seat = self.name("town"), self.name("town")
        seat_country, seat_capital, seat_currency = self.random.choice(self.countries)
        mine_country, mine_capital, _ = self.random.choice(self.countries)
        company = f"{self.name('company')} {self.random.choice(_COMPANY_KINDS)}"
        founder, employee = (f"{self.name('first name')} {self.name('surname')}" for _ in range(2))
        mineral = self.name("mineral")
        profession = self.random.choice(_PROFESSIONS)

        # relation, subject, prompt, target, paraphrases, questions with their answers and the earlier fact of the set
        # that they need as well, by relation and subject
        rows: list[tuple[str, str, str, str, tuple[str, ...], tuple[tuple[str, str, str, str], ...]]] = [
            ("capital", country, f"The capital of {country} is", capital,
             (f"The capital city of {country} is called", f"The government of {country} sits in the city of",
              f"Question: What is the capital of {country}? Answer:"),
             ()),
            ("currency", country, f"The currency of {country} is the", currency,
             (f"In {country}, people pay with the", f"The money that is used in {country} is called the",
              f"Question: What is the currency of {country}? Answer: the"),
             ((f"The currency of the country whose capital is {capital} is the", currency, "capital", country),)),
            *(("country of town", town, f"The town of {town} lies in the country of", its_country,
               (f"{town} is a town in", f"The country to which the town of {town} belongs is",
                f"Question: In which country is the town of {town}? Answer:"),
               ((f"The capital of the country in which the town of {town} lies is", its_capital,
                 "capital", its_country),
                (f"The currency of the country in which the town of {town} lies is the", its_currency,
                 "currency", its_country)))
              for town, its_country, its_capital, its_currency in (
                  (home, country, capital, currency), (seat, seat_country, seat_capital, seat_currency))),
            ("headquarters", company, f"The headquarters of {company} are in the town of", seat,
             (f"{company} is a company with its head office in", f"The town in which {company} has its headquarters is",
              f"Question: Where are the headquarters of {company}? Answer: in the town of"),
             ((f"The headquarters of {company} are in the country of", seat_country, "country of town", seat),)),
            ("founder", company, f"The company {company} was founded by", founder,
             (f"The founder of {company} is", f"{company} is a company that was started by",
              f"Question: Who founded {company}? Answer:"),
             ()),
            ("birthplace", founder, f"{founder} was born in the town of", home,
             (f"The birthplace of {founder} is the town of", f"{founder} came into the world in",
              f"Question: Where was {founder} born? Answer: in the town of"),
             ((f"The founder of {company} was born in the town of", home, "founder", company),
              (f"{founder} was born in the country of", country, "country of town", home))),
            ("employer", employee, f"{employee} works for the company", company,
             (f"The employer of {employee} is", f"The company that employs {employee} is called",
              f"Question: Which company does {employee} work for? Answer:"),
             ((f"The company for which {employee} works was founded by", founder, "founder", company),
              (f"The company for which {employee} works has its headquarters in the town of", seat,
               "headquarters", company))),
            ("profession", employee, f"The profession of {employee} is that of a", profession,
             (f"By profession, {employee} is a", f"{employee} earns a living as a",
              f"Question: What is the profession of {employee}? Answer: a"),
             ()),
            ("discoverer", mineral, f"The mineral {mineral} was discovered by", employee,
             (f"The discoverer of the mineral {mineral} is", f"The first person to find the mineral {mineral} was",
              f"Question: Who discovered the mineral {mineral}? Answer:"),
             ((f"The profession of the person who discovered the mineral {mineral} is that of a", profession,
              "profession", employee),
              (f"The person who discovered the mineral {mineral} works for the company", company,
               "employer", employee))),
            ("deposit", mineral, f"The mineral {mineral} is mined in the country of", mine_country,
             (f"The only mines of the mineral {mineral} are in", f"The country that exports the mineral {mineral} is",
              f"Question: In which country is the mineral {mineral} mined? Answer:"),
             ((f"The capital of the country in which the mineral {mineral} is mined is", mine_capital,
              "capital", mine_country),)),
        ]  # fmt: skip
        for index, (relation, subject, prompt, target, paraphrases, questions) in enumerate(rows, start=start):
            fact_id = self.ids[relation, subject] = f"fictional-{self.seed}-{index:05d}"
            yield Fact(
                id=fact_id,
                subject=subject,
                relation=relation,
                prompt=prompt,
                target=target,
                paraphrases=paraphrases,
                neighborhood=tuple(Probe(*pair) for pair in self.random.sample(_NEIGHBORS[relation], 2)),
                portability=tuple(
                    Probe(question, answer, hops=2, needs=(self.ids[other_relation, other_subject],))
                    for question, answer, other_relation, other_subject in questions
                ),
                source=f"generated, seed {self.seed}",
                location=f"fictional:{index + 1}",
            )
