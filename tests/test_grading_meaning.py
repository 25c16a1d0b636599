"""Answers that mean the gold answer, and answers that do not: the semantic verdict (`fast=False`), form by form.

Written by hand: the forms in which models and people write a result, and the near misses of each.
"""

import pytest

from cs336_alignment.grading import judge

# gold answer: (texts that are the same answer, texts that are not)
CASES: dict[str, tuple[list[str], list[str]]] = {
    "\\frac{1}{2}": (
        [
            "1/2", "0.5", "\\frac12", ".5", "50\\%", "one half", "2^{-1}", "\\dfrac{1}{2}", "\\tfrac{1}{2}",
            "{1 \\over 2}", "1 / 2", "\\left(\\frac{1}{2}\\right)", "x=\\frac{1}{2}", "$\\frac{1}{2}$.",
            "\\frac{1}{2}\\text{ cup}",
        ],
        [
            "\\frac{2}{1}", "12",
        ],
    ),
    "3\\frac{1}{2}": (
        [
            "3.5", "3 1/2", "3 \\frac{1}{2}", "3\\tfrac12", "3½", "three and a half",
        ],
        [
            "3-\\frac12", "3\\cdot\\frac{1}{2}",
        ],
    ),
    "-1\\frac{2}{3}": (
        [
            "-5/3", "-\\frac{5}{3}", "-1\\tfrac{2}{3}", "-1.\\overline{6}", "-1.\\bar{6}",
        ],
        [
            "-\\frac{1}{3}",
        ],
    ),
    "\\frac{1}{3}": (
        [
            "0.333...", "0.\\bar{3}", "33.\\overline{3}\\%", "33\\frac{1}{3}\\%", "⅓", "0.(3)",
        ],
        [
            "33.3\\%",
        ],
    ),
    "\\frac{3}{8}": (
        [
            "0.375", "\\frac{3}{8} = 0.375", "3/8 = 0.375", "37.5%",
        ],
        [

        ],
    ),
    "5": (
        [
            "5.0", "five", "\\text{five}", "$x=5$", "5.",
        ],
        [
            "x\\neq5", "5i", "Each of the 5 kids gets 18 candies.",
        ],
    ),
    "-7": (
        [
            "- 7", "negative 7", "negative seven", "minus seven", "-7.0", "(-7)",
        ],
        [
            "7", "--7",
        ],
    ),
    "1000000": (
        [
            "10^6", "1\\times10^6", "1 000 000", "1{,}000{,}000", "1.0 \\times 10^{6}", "1000k",
        ],
        [
            "one hundred thousand",
        ],
    ),
    "2^{10}": (
        [
            "1024",
        ],
        [

        ],
    ),
    "1024": (
        [
            "4^5", "32^2", "2^{10} = 1024", "1,024",
        ],
        [

        ],
    ),
    "0": (
        [
            "0.0", "zero", "-0",
        ],
        [

        ],
    ),
    "6!": (
        [
            "720",
        ],
        [

        ],
    ),
    "\\binom{10}{3}": (
        [
            "{10 \\choose 3}",
        ],
        [

        ],
    ),
    "\\sqrt{2}": (
        [
            "\\sqrt 2", "2^{0.5}", "2^{1/2}", "√(2)", "\\sqrt[2]{2}",
        ],
        [
            "-\\sqrt{2}", "\\pm\\sqrt{2}",
        ],
    ),
    "2\\sqrt{3}": (
        [
            "2√3", "2 sqrt(3)", "2*sqrt(3)", "\\sqrt{3}\\cdot 2", "\\sqrt{4}\\sqrt{3}", "\\frac{6}{\\sqrt{3}}",
        ],
        [
            "23", "2\\sqrt[3]{3}",
        ],
    ),
    "\\frac{\\sqrt{2}}{2}": (
        [
            "\\sqrt{\\frac12}", "\\frac{1}{\\sqrt2}", "\\sqrt{2}/2", "\\frac12\\sqrt2",
        ],
        [

        ],
    ),
    "1+\\sqrt{5}": (
        [
            "\\sqrt5+1", "1+\\sqrt 5",
        ],
        [

        ],
    ),
    "\\frac{1+\\sqrt{5}}{2}": (
        [
            "(1+\\sqrt{5})/2", "\\frac{1}{2}+\\frac{\\sqrt{5}}{2}", "\\frac{1}{2}(1+\\sqrt{5})",
        ],
        [
            "1+\\frac{\\sqrt5}{2}",
        ],
    ),
    "\\sqrt[3]{4}": (
        [
            "4^{1/3}", "\\sqrt[3]4", "∛4", "4^{\\frac{1}{3}}",
        ],
        [
            "\\sqrt{4}", "2", "\\sqrt[4]{3}",
        ],
    ),
    "3 - 2\\sqrt{2}": (
        [
            "(\\sqrt{2}-1)^2",
        ],
        [

        ],
    ),
    "\\sqrt{x+1}": (
        [
            "\\sqrt{x + 1}", "\\sqrt{1+x}",
        ],
        [
            "\\sqrt{x}+1",
        ],
    ),
    "\\pi": (
        [
            "π", "\\frac{2\\pi}{2}",
        ],
        [
            "3.14",
        ],
    ),
    "2\\pi": (
        [
            "2 pi", "2*pi", "\\pi 2",
        ],
        [
            "6.28",
        ],
    ),
    "25\\pi": (
        [
            "25π", "25 pi", "25\\pi \\text{ cm}^2", "25\\pi\\text{ square units}",
        ],
        [

        ],
    ),
    "\\frac{\\pi}{6}": (
        [
            "\\pi/6", "π/6",
        ],
        [

        ],
    ),
    "9\\pi - 18": (
        [
            "-18+9\\pi", "9(\\pi-2)",
        ],
        [

        ],
    ),
    "90^\\circ": (
        [
            "90", "90°", "90 degrees", "90\\text{ degrees}",
        ],
        [

        ],
    ),
    "60": (
        [
            "60°", "60 degrees", "\\angle ABC = 60^\\circ",
        ],
        [

        ],
    ),
    "(1,2)": (
        [
            "(1, 2)", "( 1 , 2 )", "x=1, y=2", "x=1,y=2", "x = 1 and y = 2", "\\left( 1, 2 \\right)", "(1.0, 2.0)",
            "y=2, x=1",
        ],
        [
            "(2,1)", "[1,2)", "(1,2]",
        ],
    ),
    "\\left(\\frac{1}{2}, -3\\right)": (
        [
            "(0.5,-3)", "(\\tfrac12, -3)",
        ],
        [
            "(1/2,3)",
        ],
    ),
    "(0,0), (1,1)": (
        [
            "(1,1), (0,0)", "(1,1),(0,0)", "\\{(0,0),(1,1)\\}",
        ],
        [
            "(0,0)",
        ],
    ),
    "(2,\\infty)": (
        [
            "x \\gt 2", "2<x", "2 < x < \\infty", "(2,+\\infty)", "]2,\\infty[", "(2,∞)", "\\{x : x > 2\\}",
            "\\{x \\in \\mathbb{R} \\mid x > 2\\}", "\\{x|x>2\\}", "(2, infinity)", "(2, inf)",
        ],
        [
            "x \\ge 2", "(-\\infty,2)",
        ],
    ),
    "[-1,3]": (
        [
            "[-1, 3]", "-1 \\le x \\le 3", "3 \\ge x \\ge -1", "-1<=x<=3", "x\\in[-1,3]", "\\left[-1,3\\right]",
        ],
        [
            "-1 < x < 3", "(-1,3)", "[-1,3)",
        ],
    ),
    "[0,1)": (
        [
            "0 \\le x < 1", "\\{x \\mid 0 \\le x < 1\\}",
        ],
        [
            "0 < x \\le 1", "(0,1]",
        ],
    ),
    "(-\\infty, -1) \\cup (1, \\infty)": (
        [
            "(-\\infty,-1)\\cup(1,\\infty)", "x<-1 or x>1", "x>1 or x<-1", "(-∞,-1)∪(1,∞)",
            "x \\in (-\\infty,-1)\\cup(1,\\infty)", "\\mathbb{R}\\setminus[-1,1]",
        ],
        [
            "(-1,1)", "(-\\infty,-1]\\cup[1,\\infty)",
        ],
    ),
    "(-\\infty,2)\\cup(2,\\infty)": (
        [
            "x\\ne2", "x != 2", "x<2 or x>2", "\\mathbb{R} \\backslash \\{2\\}", "\\mathbb{R}-\\{2\\}",
            "all real numbers except x=2",
        ],
        [

        ],
    ),
    "(-\\infty,\\infty)": (
        [
            "all real numbers", "\\text{all real numbers}", "ℝ", "-\\infty < x < \\infty", "(-\\infty,+\\infty)",
        ],
        [

        ],
    ),
    "\\{1,2,3\\}": (
        [
            "\\{3,2,1\\}", "{1,2,3}", "\\left\\{1,2,3\\right\\}", "\\{1, 2, 3\\}",
        ],
        [
            "\\{123\\}", "[1,2,3]",
        ],
    ),
    "\\emptyset": (
        [
            "\\{\\}", "∅", "empty set", "the empty set",
        ],
        [
            "0",
        ],
    ),
    "1, -2": (
        [
            "-2, 1", "-2,1", "1 and -2", "1 or -2", "x = 1, x = -2", "x = 1 \\text{ or } x = -2", "x=1,-2",
            "\\{1,-2\\}", "\\{-2,1\\}", "1; -2", "x \\in \\{1,-2\\}", "x_1 = 1, x_2 = -2",
        ],
        [
            "1,2",
        ],
    ),
    "2, 3, 5, 7": (
        [
            "7,5,3,2", "2,3,5, and 7", "2, 3, 5 and 7",
        ],
        [
            "2357",
        ],
    ),
    "\\pm 3": (
        [
            "3,-3", "-3, 3", "\\{3,-3\\}", "3 or -3", "x=\\pm 3", "±3", "x = 3 or x = -3",
        ],
        [
            "-3",
        ],
    ),
    "1 \\pm \\sqrt{2}": (
        [
            "1-\\sqrt{2}, 1+\\sqrt{2}", "1+\\sqrt{2} and 1-\\sqrt{2}", "x = 1 \\pm \\sqrt{2}",
            "\\{1-\\sqrt2,1+\\sqrt2\\}", "1\\mp\\sqrt{2}",
        ],
        [
            "1+\\sqrt{2}",
        ],
    ),
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}": (
        [
            "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\left[\\begin{array}{cc}1&2\\\\3&4\\end{array}\\right]",
            "[[1,2],[3,4]]", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\\\ \\end{pmatrix}",
            "A = \\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
        ],
        [
            "\\begin{pmatrix} 1 & 3 \\\\ 2 & 4 \\end{pmatrix}",
        ],
    ),
    "\\begin{pmatrix} 1/2 & 0 \\\\ 0 & 1/3 \\end{pmatrix}": (
        [
            "\\begin{bmatrix} 2/4 & 0 \\\\ 0 & \\frac{1}{3} \\end{bmatrix}",
            "\\begin{pmatrix} \\frac{1}{2} & 0 \\\\ 0 & \\frac{1}{3} \\end{pmatrix}",
        ],
        [

        ],
    ),
    "3\\mathbf{i} - 4\\mathbf{j}": (
        [
            "-4\\mathbf{j}+3\\mathbf{i}", "3\\mathbf{i}-4\\mathbf{j}", "3i-4j", "3\\hat{i}-4\\hat{j}",
            "3\\vec{i}-4\\vec{j}",
        ],
        [

        ],
    ),
    "x^2+2x+1": (
        [
            "1+2x+x^2", "x^{2}+2x+1", "x^2+2*x+1", "x*x+2x+1", "x²+2x+1", "x**2+2*x+1", "y = x^2+2x+1",
        ],
        [
            "y^2+2y+1", "x^2+2x+1=0", "x2+2x+1", "x^2+x+1",
        ],
    ),
    "(x-3)(x+2)": (
        [
            "(x+2)(x-3)", "(3-x)(-x-2)",
        ],
        [
            "(x-3)(x-2)",
        ],
    ),
    "a^2-b^2": (
        [
            "(a-b)(a+b)", "-b^2+a^2",
        ],
        [
            "(a-b)^2", "a^2-c^2",
        ],
    ),
    "a+b": (
        [

        ],
        [
            "ab",
        ],
    ),
    "m+n": (
        [
            "n+m",
        ],
        [

        ],
    ),
    "3c": (
        [
            "3 c", "3*c",
        ],
        [
            "3 cm",
        ],
    ),
    "2h": (
        [
            "2 h",
        ],
        [

        ],
    ),
    "\\frac{a}{b}": (
        [
            "a/b", "a \\div b", "\\frac{2a}{2b}",
        ],
        [
            "a*b",
        ],
    ),
    "x^2y^3": (
        [
            "(x y)^2 y", "x^2*y^3",
        ],
        [
            "x^3y^2",
        ],
    ),
    "e^{2x}": (
        [
            "(e^x)^2", "(e^2)^x", "\\exp(2x)", "exp(2x)", "e^{x}\\cdot e^{x}",
        ],
        [
            "e^{2}e^{x}", "e^2x",
        ],
    ),
    "x^{10}": (
        [
            "x^10",
        ],
        [
            "x^1 0", "10^x",
        ],
    ),
    "\\frac{n(n+1)}{2}": (
        [
            "n(n+1)/2",
        ],
        [

        ],
    ),
    "n(n+1)/2": (
        [
            "\\frac{1}{2}n(n+1)",
        ],
        [

        ],
    ),
    "\\frac{x^2-1}{x+1}": (
        [
            "\\frac{(x-1)(x+1)}{x+1}",
        ],
        [

        ],
    ),
    "|x-3|": (
        [
            "|3-x|", "\\left|x-3\\right|", "abs(x-3)",
        ],
        [
            "3-x", "x-3",
        ],
    ),
    "y = 2x+3": (
        [
            "2x+3=y", "y=2x+3", "2x - y + 3 = 0", "2y = 4x+6", "f(x)=2x+3", "2x+3", "x = \\frac{y-3}{2}",
            "y=2(x+1.5)",
        ],
        [
            "y = 2x - 3",
        ],
    ),
    "x = 5": (
        [
            "5 = x", "5", "x=5.0",
        ],
        [
            "x = 6", "x=-5 or 5",
        ],
    ),
    "x^2+y^2=25": (
        [
            "y^2+x^2=25", "x^2+y^2-25=0", "x^2 + y^2 = 5^2", "25 = x^2 + y^2", "2x^2+2y^2=50",
        ],
        [
            "x^2+y^2=5", "25",
        ],
    ),
    "\\frac{x^2}{9}+\\frac{y^2}{4}=1": (
        [
            "4x^2+9y^2=36", "x^2/9+y^2/4=1",
        ],
        [

        ],
    ),
    "y = -\\frac{1}{2}x + 4": (
        [
            "x+2y=8", "y=4-x/2", "y = -0.5x+4",
        ],
        [

        ],
    ),
    "x=1, y=-1": (
        [
            "x=1,y=-1", "y=-1, x=1", "(x,y)=(1,-1)",
        ],
        [
            "x=-1,y=1",
        ],
    ),
    "x > 5": (
        [
            "x>5", "x - 5 > 0", "2x>10",
        ],
        [
            "x \\geq 5", "x < 5", "y > 5",
        ],
    ),
    "x \\le -2": (
        [
            "x≤-2", "(-\\infty,-2]",
        ],
        [
            "x < -2", "(-\\infty, -2)", "x \\ge -2",
        ],
    ),
    "-3 < x \\le 4": (
        [
            "(-3,4]", "4 \\ge x > -3", "x \\in (-3,4]",
        ],
        [
            "-3 \\le x < 4",
        ],
    ),
    "k \\neq 0": (
        [
            "k\\ne0", "k≠0",
        ],
        [
            "k = 0", "k > 0",
        ],
    ),
    "y \\ge 2x - 1": (
        [
            "y-2x \\ge -1", "2x-1 \\le y", "y>=2x-1",
        ],
        [

        ],
    ),
    "\\text{even}": (
        [
            "Even", "\\text{Even}", "even.", "\\textit{even}", "it is even",
        ],
        [
            "odd", "not even",
        ],
    ),
    "\\text{Yes}": (
        [
            "yes", "Yes.", "Yes!", "\\text{yes}", "The answer is yes",
        ],
        [

        ],
    ),
    "\\text{Tuesday}": (
        [
            "The answer is Tuesday.", "\\text{tuesday}", "**Tuesday**", "on Tuesday",
        ],
        [
            "Wednesday", "Tuesday or Wednesday", "Not Tuesday",
        ],
    ),
    "\\text{Monday}": (
        [
            "Monday", "monday",
        ],
        [

        ],
    ),
    "\\text{Evelyn}": (
        [
            "Evelyn.", "evelyn", "\\mathrm{Evelyn}", "The student is Evelyn",
        ],
        [

        ],
    ),
    "\\text{ellipse}": (
        [
            "an ellipse", "The graph is an ellipse.",
        ],
        [
            "circle",
        ],
    ),
    "\\text{right triangle}": (
        [
            "a right triangle",
        ],
        [
            "triangle",
        ],
    ),
    "\\text{no solution}": (
        [
            "No solution.", "There is no solution",
        ],
        [

        ],
    ),
    "\\text{infinitely many}": (
        [
            "infinitely many",
        ],
        [

        ],
    ),
    "\\text{undefined}": (
        [
            "undefined", "Undefined",
        ],
        [

        ],
    ),
    "\\text{red}": (
        [
            "red", "Red",
        ],
        [
            "blue",
        ],
    ),
    "\\text{increasing}": (
        [
            "it is increasing",
        ],
        [
            "not increasing",
        ],
    ),
    "A": (
        [
            "A", "\\textbf{A}", "\\textbf{(A)}", "(a)", "A:", "Choice A", "option A", "The answer is A",
            "The answer is (A).",
        ],
        [
            "B", "A or B", "A, B", "A and B",
        ],
    ),
    "C": (
        [
            "C", "(C)", "c", "\\text{C}", "\\mathrm{C}", "\\text{(C)}",
        ],
        [
            "not C",
        ],
    ),
    "\\text{(B)}": (
        [
            "(B)", "B.",
        ],
        [
            "A",
        ],
    ),
    "D": (
        [
            "(D)", "$D$",
        ],
        [
            "E",
        ],
    ),
    "A, C": (
        [
            "C, A", "A and C", "A,C", "(A) and (C)",
        ],
        [
            "A",
        ],
    ),
    "\\text{I and III}": (
        [
            "I and III", "I, III", "III and I",
        ],
        [
            "I", "I and II",
        ],
    ),
    "3+4i": (
        [
            "3 + 4i", "3+4\\cdot i", "3+i4", "4i + 3",
        ],
        [

        ],
    ),
    "-i": (
        [
            "-i", "-1i", "0-i",
        ],
        [
            "i",
        ],
    ),
    "\\pm i": (
        [
            "\\pm i", "-i, i", "\\{i,-i\\}",
        ],
        [
            "i",
        ],
    ),
    "\\frac{1}{2} + \\frac{\\sqrt{3}}{2}i": (
        [
            "\\frac{1+i\\sqrt{3}}{2}", "\\frac{1+\\sqrt{3}i}{2}",
        ],
        [
            "\\frac{1}{2}-\\frac{\\sqrt{3}}{2}i",
        ],
    ),
    "e^{i\\pi/4}": (
        [
            "e^{\\frac{i\\pi}{4}}",
        ],
        [
            "e^{-i\\pi/4}",
        ],
    ),
    "\\frac{3}{5} - \\frac{4}{5}i": (
        [
            "\\frac{3-4i}{5}",
        ],
        [

        ],
    ),
    "3\\ln 2": (
        [
            "ln 8", "3ln(2)", "3 \\ln(2)", "\\ln(2^3)", "\\ln 2^{3}",
        ],
        [
            "2\\ln 3",
        ],
    ),
    "\\log_2 5": (
        [
            "\\frac{\\ln 5}{\\ln 2}", "\\log_2{5}", "log_2(5)", "\\frac{1}{\\log_5 2}",
        ],
        [
            "2.32", "\\log 5",
        ],
    ),
    "e^2": (
        [
            "e*e", "\\exp(2)",
        ],
        [
            "7.389", "e^{2x}", "2^e",
        ],
    ),
    "\\ln(x+1)": (
        [
            "\\ln(1+x)", "ln(x+1)",
        ],
        [
            "\\ln x + 1", "\\ln x + \\ln 1",
        ],
    ),
    "\\frac{\\ln 3}{2}": (
        [
            "\\ln\\sqrt{3}", "0.5\\ln 3", "\\frac{1}{2}\\ln(3)",
        ],
        [

        ],
    ),
    "-e^{-1}": (
        [
            "-1/e", "-\\exp(-1)",
        ],
        [

        ],
    ),
    "3^{-2}": (
        [
            "1/9", "\\frac19",
        ],
        [
            "-9", "0.11",
        ],
    ),
    "10^{-6}": (
        [
            "0.000001", "1e-06", "1\\times10^{-6}",
        ],
        [

        ],
    ),
    "6.02 \\times 10^{23}": (
        [
            "6.02 * 10^23", "6.02 x 10^23", "6.02E23", "602000000000000000000000", "6.02 \\cdot 10^{23}",
            "6.02×10²³",
        ],
        [
            "6.022 \\times 10^{23}",
        ],
    ),
    "3 \\times 10^8": (
        [
            "300,000,000", "3e8", "3×10^8", "3 \\times 10^8 m/s", "300 million",
        ],
        [
            "3^8", "3 \\times 10^{-8}",
        ],
    ),
    "\\sin x": (
        [
            "sin(x)", "sin x", "\\sin{x}", "\\cos(\\frac{\\pi}{2}-x)",
        ],
        [
            "\\cos x", "\\sin y",
        ],
    ),
    "\\sin^2 x": (
        [
            "\\sin(x)^2", "(\\sin x)^2", "1-\\cos^2 x", "\\sin^2(x)", "\\frac{1-\\cos(2x)}{2}",
        ],
        [
            "\\sin x^2",
        ],
    ),
    "\\tan^2\\theta": (
        [
            "\\tan^2(\\theta)",
        ],
        [
            "\\tan^2 x",
        ],
    ),
    "2\\sin x\\cos x": (
        [
            "sin(2x)", "2 sin(x) cos(x)", "2\\sin(x)\\cos(x)",
        ],
        [

        ],
    ),
    "\\arctan 2": (
        [
            "\\arctan{2}", "arctan(2)", "\\tan^{-1} 2", "atan(2)",
        ],
        [
            "1.107", "\\cot 2",
        ],
    ),
    "\\frac{\\pi}{4} + k\\pi": (
        [
            "\\frac{\\pi}{4}+\\pi k", "\\pi(k+\\frac14)",
        ],
        [
            "\\frac{\\pi}{4}",
        ],
    ),
    "50\\%": (
        [
            "50%", "50", "\\frac12", "1/2", "50 \\text{ percent}",
        ],
        [
            "500\\%", "0.05",
        ],
    ),
    "12.5\\%": (
        [
            "0.125", "1/8", "12.5%", "12.50\\%",
        ],
        [

        ],
    ),
    "0.05": (
        [
            "5\\%", "5%", ".05", "0.050",
        ],
        [
            "0.5",
        ],
    ),
    "3:4": (
        [
            "3:4", "3 \\text{ to } 4", "3\\colon4",
        ],
        [
            "4 to 3",
        ],
    ),
    "1:2:3": (
        [
            "1 : 2 : 3",
        ],
        [
            "1:3:2",
        ],
    ),
    "\\$5.50": (
        [
            "\\$5.50", "$5.50", "5.50 \\text{ dollars}", "5.50 dollars",
        ],
        [
            "\\$55", "550",
        ],
    ),
    "\\$32{,}000": (
        [
            "$32,000", "32000", "\\$32000", "32 thousand",
        ],
        [
            "\\$3200",
        ],
    ),
    "5 \\text{ cm}": (
        [
            "5", "5 cm", "5cm", "5 centimeters", "5 \\mathrm{cm}",
        ],
        [
            "5 \\text{ m}",
        ],
    ),
    "5 \\text{ hours}": (
        [
            "5 hours", "5", "5 hrs", "5 h",
        ],
        [
            "5 minutes", "5 \\text{ days}",
        ],
    ),
    "12 \\text{ inches}": (
        [
            "12", "12 \\text{ in}", "12 inches",
        ],
        [

        ],
    ),
    "36 \\text{ ft}^2": (
        [
            "36", "36 ft^2", "36 square feet", "36\\text{ square feet}", "36 sq ft", "36 ft²",
        ],
        [

        ],
    ),
    "2 \\text{ m/s}": (
        [
            "2 m/s", "2", "2 \\text{ meters per second}", "2 \\frac{\\text{m}}{\\text{s}}",
        ],
        [
            "2 \\text{ km/h}",
        ],
    ),
    "48": (
        [
            "48 cubic units", "48 cm^3", "48\\text{ cubic inches}",
        ],
        [
            "84",
        ],
    ),
    "3{:}30": (
        [
            "3:30",
        ],
        [
            "330",
        ],
    ),
    "5 \\text{ million}": (
        [
            "5 million", "5,000,000", "5000000", "5 \\times 10^6",
        ],
        [
            "5 billion",
        ],
    ),
    "1010_2": (
        [
            "1010_{2}", "1010_{\\text{two}}",
        ],
        [
            "10_2",
        ],
    ),
    "2A_{16}": (
        [
            "2a_{16}", "2A_{16}",
        ],
        [

        ],
    ),
    "231_5": (
        [
            "231_{5}",
        ],
        [

        ],
    ),
    "\\frac{x^2}{2} + C": (
        [
            "1/2 x^2 + C", "\\frac{1}{2}x^2+C", "C + \\frac{x^2}{2}",
        ],
        [
            "\\frac{x^2}{2}",
        ],
    ),
    "3x^2\\cos(x^3)": (
        [
            "3\\cos(x^3)x^2",
        ],
        [
            "3x^2\\sin(x^3)", "3x^2\\cos x^2",
        ],
    ),
    "f^{-1}(x) = \\frac{x-3}{2}": (
        [
            "f^{-1}(x) = \\frac{1}{2}(x-3)", "(x-3)/2", "y = \\frac{x-3}{2}", "f^{-1}(x)=0.5x-1.5",
        ],
        [
            "2x+3",
        ],
    ),
    "\\infty": (
        [
            "+∞",
        ],
        [
            "-\\infty",
        ],
    ),
    "-\\infty": (
        [
            "-infinity", "negative infinity",
        ],
        [
            "\\infty",
        ],
    ),
    "\\lfloor x \\rfloor": (
        [
            "floor(x)", "⌊x⌋",
        ],
        [
            "\\lceil x \\rceil",
        ],
    ),
    "\\max(a,b)": (
        [
            "max(a,b)", "\\max(b,a)", "\\max\\{a,b\\}",
        ],
        [
            "\\min(a,b)",
        ],
    ),
    "\\sqrt{a^2+b^2}": (
        [
            "(a^2+b^2)^{1/2}",
        ],
        [
            "a+b",
        ],
    ),
    "\\frac{-b\\pm\\sqrt{b^2-4ac}}{2a}": (
        [
            "x = \\frac{-b\\pm\\sqrt{b^2-4ac}}{2a}",
            "\\frac{-b+\\sqrt{b^2-4ac}}{2a}, \\frac{-b-\\sqrt{b^2-4ac}}{2a}",
        ],
        [
            "\\frac{-b-\\sqrt{b^2-4ac}}{2a}",
        ],
    ),
    "1,234": (
        [
            "1234", "1 234",
        ],
        [
            "12,34",
        ],
    ),
    "(1,234)": (
        [
            "(1, 234)",
        ],
        [
            "1234",
        ],
    ),
    "(-2, 5]": (
        [
            "-2 < x \\le 5",
        ],
        [
            "[-2,5]",
        ],
    ),
    "\\frac{5}{36}": (
        [
            "5 / 36", "5 out of 36", "0.13\\overline{8}", "P = \\frac{5}{36}",
        ],
        [
            "0.139",
        ],
    ),
    "2\\frac{3}{4}": (
        [
            "2.75", "2¾",
        ],
        [

        ],
    ),
    "\\frac{23}{4}": (
        [
            "5.75", "5 3/4",
        ],
        [

        ],
    ),
    "7 \\pmod{12}": (
        [
            "7 \\mod 12", "x \\equiv 7 \\pmod{12}", "7 mod 12", "7 (mod 12)", "7",
        ],
        [

        ],
    ),
    "3 \\text{ R } 2": (
        [
            "3 R 2", "3 r 2", "3R2", "3 \\text{ remainder } 2",
        ],
        [
            "2 R 3", "3",
        ],
    ),
    "\\text{Friday, March 5}": (
        [
            "Friday March 5", "friday, march 5",
        ],
        [
            "Friday, March 6",
        ],
    ),
    "4 \\text{ apples and } 3 \\text{ oranges}": (
        [
            "4 \\text{ apples}, 3 \\text{ oranges}", "3 oranges and 4 apples",
        ],
        [
            "3 apples and 3 oranges",
        ],
    ),
    "110^\\circ F": (
        [
            "110 °F", "110^\\circ\\text{F}", "110 degrees Fahrenheit", "110", "110°",
        ],
        [
            "110^\\circ C",
        ],
    ),
    "x = -1 \\text{ or } x = 4": (
        [
            "4 or -1", "\\{-1,4\\}", "x=4, x=-1", "x=-1 and x=4",
        ],
        [
            "x = 4", "-1",
        ],
    ),
    "\\frac{n!}{k!(n-k)!}": (
        [
            "\\frac{n!}{(n-k)!k!}", "{n \\choose k}",
        ],
        [

        ],
    ),
    "2^x \\cdot 3^y": (
        [
            "2^x3^y",
        ],
        [
            "6^{xy}", "6^{x+y}",
        ],
    ),
    "d = 4": (
        [
            "d = 4.0", "4",
        ],
        [
            "d = 5",
        ],
    ),
    "2s + 3t": (
        [
            "3t+2s",
        ],
        [
            "2s+3", "5st",
        ],
    ),
    "t^2 - 4t": (
        [
            "t^2-4t", "-4t+t^2",
        ],
        [

        ],
    ),
    "6.28": (
        [
            "6.28", "6.2800", "628/100",
        ],
        [

        ],
    ),
    "3.14": (
        [
            "3.14",
        ],
        [
            "\\pi", "22/7",
        ],
    ),
    "0.1": (
        [
            "1/10", "10\\%",
        ],
        [
            "0.01",
        ],
    ),
    "99.99": (
        [
            "99.990",
        ],
        [
            "99.9", "100",
        ],
    ),
    "18": (
        [
            "18 dollars", "Total = 18", "**18**", "18</s>", "18<|im_end|>", "18.</answer>", "18 <eos>", "18.000",
            "She earns $18 every day.", "She makes 18 dollars a day",
            "Janet makes $18 every day at the farmers market.", "So, Janet makes 9 * 2 = $18 every day.",
            "16 - 3 - 4 = 9; 9 * 2 = 18", "18 (eighteen) dollars", "Eighteen (18)", "eighteen dollars ($18)",
            "the answer = 18", "Answer=18", "answer: $18.", "Final answer: 18 dollars.", "#### 18",
            "The answer is: $18$.", "= $18", ": 18", "-> 18", "⇒ 18", "so 18", "18 in total", "18 apples left",
            "018", "18e0", "1.8e1", "I first thought 17, but the answer is 18.", "Not 17 but 18", "18, not 17",
            "The answer is not 17, it is 18", "The answer is 18 rather than 17", "18%", "18 percent", "18 cents",
            "There are 4 + 14 = 18 students in the 3 classes.", "After 3 days he has 18 left.",
            "He needs 18 more dollars after 3 weeks.", "Each of the 5 kids gets 18 candies.", "Half of 36 is 18.",
            "36 divided by 2 is 18", "36 divided by 2 equals 18", "Twice 9 is 18", "The sum of 9 and 9 is 18.",
            "18 is the sum of 9 and 9", "9 + 9 is 18", "9 plus 9 equals 18",
            "Tom has 5 apples. Jerry has 13. Together they have 18.", "5 + 13 = 18. So the answer is 18 apples.",
            "She sold 12 and 6, so 18", "12 + 6 = 18 (total)", "18 (rounded from 17.9)", "**eighteen**",
            "\\text{eighteen dollars}", "Eighteen!", "18 km/hr", "18 kilometers per hour", "18 m²", "18 m^2",
            "18 sq. ft.", "18 sq ft", "18 lbs", "18 lbs.", "18 oz", "18 years", "18 years old", "18 °", "18 degrees",
            "18 deg", "18€", "€18", "18 EUR", "£18.00", "¥18", "Rs. 18", "Rs 18", "₹18", "18 rupees", "18 USD",
            "USD18", "US$ 18", "$18.00 USD", "18 $", "18$", "\\$ 18", "18\\$", "18 \\$", "18 miles/hour", "18 mi",
            "18 L", "18 liters", "18 GB", "18 points", "18 pts", "18 people/day", "18 eggs/day", "18 hours/week",
            "18 per hour", "$18/hour", "$18 / hour", "\\$18/hr", "\"18\"", "'18'", "«18»", "‘18’", "{18}",
            "<i>18</i>", "<strong>18</strong>", "<answer>18", "```18```", "_18_", "***18***", "* 18", "• 18", "18.",
            "18,", "18;", "18:", "(18)", "\n\n18\n\n", "\\boxed{18}.", "**Answer**: 18", "**Final Answer:** **18**",
            "Answer: **18**", "*Answer:* 18", "The answer is `18`.", "The answer is \"18\".", "9 * 2 = 18", "9*2=18",
            "9 × 2 = 18", "9 x 2 = 18", "9 \\times 2 = 18", "36 / 2 = 18", "36 ÷ 2 = 18", "\\frac{36}{2} = 18",
            "20 - 2 = 18", "20 - 2 = $18", "20% of 90 = 18", "x = 9 + 9 = 18", "2x = 36, x = 18",
            "2x = 36 so x = 18", "x + 2 = 20, so x = 18", "18 = x", "x is 18", "Let x = 18", "n = 18",
            "Number of apples = 18", "Total cost: $18", "Total cost = 9*2 = $18", "cost=18", "speed = 18 km/h",
            "Profit = \\$20 - \\$2 = \\$18", "\\text{Total cost} = \\$18", "\\text{Answer: } 18",
            "\\text{The answer is } 18", "\\text{The answer is 18.}", "The answer is \\(18\\).",
            "The answer is \\$18.", "\\therefore 18", "\\boxed{\\$18.00}", "\\mathbf{18}", "\\textbf{18}",
            "\\underline{18}", "\\mathrm{18}", "{\\bf 18}", "\\large 18", "\\fbox{18}",
            "\\underline{\\underline{18}}",
        ],
        [
            "18,000", "18 ½", "18.5", "17.999", "18.0001", "less than 18", "more than 18", "between 17 and 19",
            "from 17 to 19", "17-19", "17 to 18", "18 hours 30 minutes", "18 feet 6 inches", "1 hour 8 minutes",
            "1h 8min", "1 dozen 8", "0.18", "$0.18", "x < 18", "x <= 18", "18 < x", "!= 18", "<= 18", "≤ 18", "-18",
            "18 remainder 2", "18 R2", "18 r 2", "(18, 18)", "18, 19", "17, 18, 19", "18x", "18i", "18\\pi",
            "\\sqrt{18}", "18^2", "2^{18}", "1/18", "18 thousand", "18 million", "18k", "180", "1.8", "81", "118",
            "18000 cents", "18 + 1", "18 \\times 10^2", "18_2", "18 dozen", "18 hundred", "hundred eighteen",
            "eighteen hundred", "no", "18 is incorrect", "18 is not the answer", "it is not 18", "it isn't 18",
            "never 18", "anything but 18", "everything except 18", "18 is wrong; 19 is right", "18\\text{ is wrong}",
            "18 \\neq x",
        ],
    ),
    "18000": (
        [
            "18k", "18 000", "18 000", "18'000",
        ],
        [

        ],
    ),
    "1800": (
        [
            "1.8 thousand", "$1.8 thousand",
        ],
        [

        ],
    ),
    "2500000": (
        [
            "2.5 million",
        ],
        [

        ],
    ),
    "2,500,000": (
        [
            "2.5 million dollars",
        ],
        [

        ],
    ),
    "1200": (
        [
            "1.2 x 10^3", "1.2×10^3", "1.2 \\cdot 10^3", "twelve hundred",
        ],
        [

        ],
    ),
    "3": (
        [
            "It takes 3 bolts in total.", "The total is 2 + 1 = 3 bolts",
        ],
        [
            "After 3 days he has 18 left.",
        ],
    ),
    "70000": (
        [
            "The profit was $70,000.", "He made a profit of $70,000", "$70,000 profit",
        ],
        [

        ],
    ),
    "540": (
        [
            "540 meters a week", "He runs 540 meters per week.",
        ],
        [

        ],
    ),
    "20": (
        [
            "20 cups of feed",
        ],
        [
            "3 hours and 20 minutes", "two",
        ],
    ),
    "64": (
        [
            "$64 for 16 glasses", "64 dollars for the glasses",
        ],
        [

        ],
    ),
    "260": (
        [
            "260 sheep in total",
        ],
        [

        ],
    ),
    "160": (
        [
            "It takes him 160 minutes",
        ],
        [

        ],
    ),
    "45": (
        [
            "45 miles from home",
        ],
        [

        ],
    ),
    "460": (
        [
            "$460 this week",
        ],
        [

        ],
    ),
    "366": (
        [
            "366 downloads over 3 months", "366 downloads in the first three months",
        ],
        [

        ],
    ),
    "694": (
        [
            "$694 for the 5 pastries",
        ],
        [

        ],
    ),
    "13": (
        [
            "13 lemons per tree",
        ],
        [

        ],
    ),
    "18.5": (
        [
            "18½",
        ],
        [

        ],
    ),
    "17": (
        [

        ],
        [
            "I first thought 17, but the answer is 18.", "18, not 17",
        ],
    ),
    "24": (
        [
            "two dozen", "2 dozen eggs",
        ],
        [

        ],
    ),
    "12": (
        [
            "a dozen",
        ],
        [

        ],
    ),
    "36": (
        [

        ],
        [
            "Half of 36 is 18.",
        ],
    ),
    "9": (
        [

        ],
        [
            "The sum of 9 and 9 is 18.",
        ],
    ),
    "105": (
        [
            "one hundred and five", "one hundred five",
        ],
        [

        ],
    ),
    "100": (
        [
            "a hundred",
        ],
        [

        ],
    ),
    "2005": (
        [
            "two thousand and five",
        ],
        [

        ],
    ),
    "42": (
        [
            "forty-two", "Forty two apples", "The answer is forty-two apples.",
        ],
        [

        ],
    ),
    "15": (
        [
            "fifteen",
        ],
        [

        ],
    ),
    "50": (
        [

        ],
        [
            "fifteen",
        ],
    ),
    "100000": (
        [
            "one hundred thousand",
        ],
        [

        ],
    ),
    "365200": (
        [
            "three hundred sixty-five thousand two hundred",
        ],
        [

        ],
    ),
    "2": (
        [

        ],
        [
            "twenty",
        ],
    ),
    "-5": (
        [
            "minus five",
        ],
        [

        ],
    ),
    "1": (
        [
            "one",
        ],
        [

        ],
    ),
    "-18": (
        [
            "- 18", "-$18", "$-18", "−18", "minus 18", "negative 18", "The answer is -18.", "-18 dollars", "-18°C",
            "x = -18",
        ],
        [
            "The answer is 18.", "18",
        ],
    ),
}  # fmt: skip
SAME = [(answer, gold) for gold, (same, _) in CASES.items() for answer in same]
DIFFERENT = [(answer, gold) for gold, (_, different) in CASES.items() for answer in different]


@pytest.mark.parametrize(("answer", "gold"), SAME)
def test_same(answer: str, gold: str):
    verdict = judge(answer, gold, fast=False)
    assert verdict.equal, verdict


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different(answer: str, gold: str):
    for fast in (True, False):
        verdict = judge(answer, gold, fast)
        assert not verdict.equal, verdict
